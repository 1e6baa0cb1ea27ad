"""Encodes prompts with a base's text encoder: `python -m trainables.prompts BASE FILE --positive TEXT --negative TEXT`.

    FILE    a .safetensors with `empty` and the prompts that are given, each (1, tokens, dim)

`--set base.prompts=FILE` conditions training and restoring on them; no text encoder is needed then. As in the public
code of OSEDiff and PiSA-SR, all prompts are padded to the tokenizer's length, the empty one too, and their embeddings
are the text encoder's last hidden states.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from trainables.common.command import ExitStatus, command_flags, exit_statuses, run_command
from trainables.common.errors import InputError, one_line
from trainables.common.flags import Flags
from trainables.common.machine import limit_threads
from trainables.common.paths import check_writable, path_of, write_whole
from trainables.pretrained.base_model import find_base, has_text_encoder
from trainables.pretrained.prompts import EMPTY, NEGATIVE, POSITIVE

PROG, DESCRIPTION = "python -m trainables.prompts", "Encodes prompts with a base's text encoder."


def write_prompts(base: Path, file: Path, texts: dict[str, str]) -> dict[str, tuple[int, bool]]:
    """Writes the embeddings of prompts.

    Args:
        texts: name, `positive` or `negative` -> text.

    Returns:
        name -> tokens of the text, and whether it was cut because it has more than the encoder takes.

    Raises:
        InputError: the base has no text encoder, or the file exists or cannot be written.
    """
    if file.exists():
        raise InputError(f"FILE {file}: already exists; choose a new file")
    if file.suffix != ".safetensors":
        raise InputError(f"FILE {file}: expected a name that ends in .safetensors")
    check_writable("FILE", file)
    if not has_text_encoder(base):
        raise InputError(
            f"BASE {base}: has no text_encoder/ and tokenizer/; expected a base in diffusers layout with both"
        )

    # These imports take seconds; errors above are reported without them.
    from safetensors.torch import save

    from trainables.pretrained.prompt_encoder import encode_prompts

    try:
        encoded = encode_prompts(base, {EMPTY: "", **texts}, padded=True)
    except Exception as error:  # the readers raise many types for a wrong file
        raise InputError(f"BASE {base}: its text encoder cannot be used ({one_line(error)})") from None
    write_whole(file, save({name: prompt.embedding.contiguous() for name, prompt in encoded.items()}))
    return {name: (prompt.tokens, prompt.cut) for name, prompt in encoded.items()}


def parser(prog: str = PROG) -> Flags:
    flags = command_flags(prog, DESCRIPTION, exit_statuses())
    flags.add_argument("base", metavar="BASE", help="a base with text_encoder/ and tokenizer/: a folder or a hub id")
    flags.add_argument("file", metavar="FILE", help="a new .safetensors file")
    flags.add_argument("--revision", default="", help="commit, tag or branch of a hub id")
    flags.add_argument("--positive", metavar="TEXT", help="prompt that conditions the network")
    flags.add_argument("--negative", metavar="TEXT", help="prompt that guidance leads away from")
    return flags


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Runs the command line; returns the exit status."""

    def work(flags: argparse.Namespace) -> int:
        named = {POSITIVE: flags.positive, NEGATIVE: flags.negative}
        texts = {name: text for name, text in named.items() if text is not None}
        if not texts:
            raise InputError("--positive TEXT or --negative TEXT: none given; expected at least one prompt")
        file = path_of("FILE", flags.file)
        base = find_base(flags.base, flags.revision, setting="BASE")
        limit_threads()
        for name, (tokens, cut) in write_prompts(base, file, texts).items():
            print(f"{name:10} {tokens} tokens{', cut: the text has more' if cut else ''}")
        print(f"written to {file}; use it with --set base.prompts={file}")
        return ExitStatus.DONE

    return run_command(parser(prog), arguments, work, "nothing was written")


if __name__ == "__main__":
    raise SystemExit(main())

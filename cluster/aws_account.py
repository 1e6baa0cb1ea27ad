"""Prepares an AWS account for cluster/gpu.yaml, once: `python cluster/aws_account.py BUCKET`.

Makes what is missing, in the region of gpu.yaml:

- the bucket, for results, prepared data, photographs and weights; interrupted uploads are deleted after a day;
- the role of the head: it starts and ends machines, gives the workers their role, and uses the bucket;
- the role of the workers: it uses the bucket;
- the role with which AWS itself starts spot machines, which an account without any spot machine so far lacks.

Needs boto3, and credentials that may create buckets and roles. Running it again changes nothing but outdated policies.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

HEAD, WORKER = "restoration-sweeps-head", "restoration-sweeps-worker"  # as in gpu.yaml
_EC2 = (
    "Describe*",
    "RunInstances",
    "CreateTags",
    "DeleteTags",
    "StartInstances",
    "StopInstances",
    "TerminateInstances",
)
_THERE = ("EntityAlreadyExists", "BucketAlreadyOwnedByYou", "LimitExceeded")  # a profile has one role at most
_SPOT = "spot.amazonaws.com"


def region() -> str:
    """The region of gpu.yaml."""
    config = yaml.safe_load(Path(__file__).with_name("gpu.yaml").read_text(encoding="utf-8"))
    return str(config["provider"]["region"])


def statements(bucket: str) -> dict[str, list[dict[str, Any]]]:
    """Role -> what it may do."""
    use = [
        _allow(["s3:ListBucket", "s3:GetBucketLocation"], f"arn:aws:s3:::{bucket}"),
        _allow(
            ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"], f"arn:aws:s3:::{bucket}/*"
        ),
    ]
    head = [
        _allow([f"ec2:{action}" for action in _EC2], "*"),
        _allow(["ssm:GetParameters"], "arn:aws:ssm:*::parameter/aws/service/*"),  # names of AWS's public images
        _allow(["iam:PassRole"], f"arn:aws:iam::*:role/{WORKER}"),
    ]
    return {HEAD: head + use, WORKER: use}


def _allow(actions: list[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resource}


def prepare_account(bucket: str) -> None:
    """Makes what is missing.

    Raises:
        ClientError, BotoCoreError: AWS refuses something, or there are no credentials.
    """
    where = region()
    s3 = boto3.client("s3", region_name=where)
    elsewhere = {} if where == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": where}}
    _made(f"bucket {bucket} in {where}", s3.create_bucket, Bucket=bucket, **elsewhere)
    rule = {
        "ID": "interrupted-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})

    iam = boto3.client("iam", region_name=where)
    trust = json.dumps({"Version": "2012-10-17", "Statement": [_trusted("ec2.amazonaws.com")]})
    for role, allowed in statements(bucket).items():
        _made(f"role {role}", iam.create_role, RoleName=role, AssumeRolePolicyDocument=trust)
        policy = json.dumps({"Version": "2012-10-17", "Statement": allowed})
        iam.put_role_policy(RoleName=role, PolicyName="restoration-sweeps", PolicyDocument=policy)
        _made(f"instance profile {role}", iam.create_instance_profile, InstanceProfileName=role)
        _made(f"{role} in its profile", iam.add_role_to_instance_profile, InstanceProfileName=role, RoleName=role)
    if not iam.list_roles(PathPrefix=f"/aws-service-role/{_SPOT}/")["Roles"]:
        iam.create_service_linked_role(AWSServiceName=_SPOT)
        print("made     role of AWS for spot machines")


def _trusted(service: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}


def _made(what: str, make: Callable[..., Any], **asked: Any) -> None:
    try:
        make(**asked)
        print(f"made     {what}")
    except ClientError as error:
        if error.response["Error"]["Code"] not in _THERE:
            raise
        print(f"there    {what}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    flags.add_argument("bucket", metavar="BUCKET", help="name of a bucket, yours or a new one; unique in all of AWS")
    try:
        prepare_account(flags.parse_args(arguments).bucket)
    except (ClientError, BotoCoreError) as error:
        print(f"aws_account.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Lists what an account pays for, a line for each thing: its kind, its id, and whose it is by its tag."""

import sys

import boto3

ec2 = boto3.client("ec2", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")


def tell(kind, name, tags):
    owner = [tag["Value"] for tag in tags or [] if tag["Key"] == "provisioner:control-plane"]
    print(kind, name, owner[0] if owner else "-")


for page in ec2.get_paginator("describe_instances").paginate():
    for reservation in page["Reservations"]:
        for machine in reservation["Instances"]:
            if machine["State"]["Name"] != "terminated":
                tell("machine", machine["InstanceId"], machine.get("Tags"))
for page in ec2.get_paginator("describe_volumes").paginate():
    for volume in page["Volumes"]:
        tell("volume", volume["VolumeId"], volume.get("Tags"))
for page in ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"]):
    for snapshot in page["Snapshots"]:
        tell("snapshot", snapshot["SnapshotId"], snapshot.get("Tags"))
for page in ec2.get_paginator("describe_network_interfaces").paginate():
    for interface in page["NetworkInterfaces"]:
        tell("interface", interface["NetworkInterfaceId"], interface.get("TagSet"))
for address in ec2.describe_addresses()["Addresses"]:
    tell("address", address["AllocationId"], address.get("Tags"))

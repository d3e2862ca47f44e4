"""The life of many machines, one after the other, as a script with boto3 has it: made, stopped, started, ended.

Prints the name of each part of the life when it is over for all of them.
"""

import sys
import time

import boto3

endpoint, count, image, subnet = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
ec2 = boto3.client("ec2", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")


def until(machine, state):
    while True:
        seen = ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"][0]
        if seen["State"]["Name"] == state:
            return seen
        time.sleep(0.5)


def checked(machine):
    while True:
        seen = ec2.describe_instance_status(InstanceIds=[machine])["InstanceStatuses"]
        if seen and seen[0]["InstanceStatus"]["Status"] == "ok" and seen[0]["SystemStatus"]["Status"] == "ok":
            return
        time.sleep(0.5)


machines = {}
for number in range(count):
    made = ec2.run_instances(
        ImageId=image,
        InstanceType="t3.micro",
        MinCount=1,
        MaxCount=1,
        ClientToken=f"boto3-{number}",
        SubnetId=subnet,
        UserData="#!/bin/sh\n",
        BlockDeviceMappings=[
            {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "VolumeType": "gp3", "DeleteOnTermination": False}}
        ],
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "owner", "Value": "boto3"}]}],
    )
    machine = made["Instances"][0]["InstanceId"]
    seen = until(machine, "running")
    checked(machine)
    machines[machine] = [disk["Ebs"]["VolumeId"] for disk in seen["BlockDeviceMappings"] if disk["DeviceName"] == "/dev/sdf"]
print("create", flush=True)
for machine in machines:
    until(machine, "running")
    checked(machine)
print("observe", flush=True)
for machine in machines:
    ec2.stop_instances(InstanceIds=[machine])
    until(machine, "stopped")
print("sleep", flush=True)
for machine in machines:
    ec2.start_instances(InstanceIds=[machine])
    until(machine, "running")
    checked(machine)
print("wake", flush=True)
for machine, volumes in machines.items():
    ec2.terminate_instances(InstanceIds=[machine])
    until(machine, "terminated")
    for volume in volumes:
        ec2.delete_volume(VolumeId=volume)
print("destroy", flush=True)

"""The same life by Apache Libcloud's driver for EC2."""

import sys
import time
from urllib.parse import urlparse

from libcloud.compute.base import NodeImage, NodeLocation
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState, Provider

endpoint, count, image, subnet = urlparse(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
driver = get_driver(Provider.EC2)("x", "x", region="us-east-1", secure=False, host=endpoint.hostname, port=endpoint.port)
size = next(size for size in driver.list_sizes() if size.id == "t3.micro")
image = NodeImage(image, None, driver)
subnet = next(known for known in driver.ex_list_subnets() if known.id == subnet)


def until(node, state):
    while True:
        seen = driver.list_nodes(ex_node_ids=[node.id])[0]
        if seen.state == state:
            return seen
        time.sleep(0.5)


nodes = []
for number in range(count):
    node = driver.create_node(
        name=f"libcloud-{number}",
        size=size,
        image=image,
        ex_subnet=subnet,
        ex_clienttoken=f"libcloud-{number}",
        ex_userdata="#!/bin/sh\n",
        ex_blockdevicemappings=[
            {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "VolumeType": "gp3", "DeleteOnTermination": "false"}}
        ],
    )
    nodes.append(until(node, NodeState.RUNNING))
print("create", flush=True)
for node in nodes:
    until(node, NodeState.RUNNING)
print("observe", flush=True)
for node in nodes:
    driver.ex_stop_node(node)
    until(node, NodeState.STOPPED)
print("sleep", flush=True)
for node in nodes:
    driver.ex_start_node(node)
    until(node, NodeState.RUNNING)
print("wake", flush=True)
for node in nodes:
    volumes = [volume for volume in driver.list_volumes(node=node) if volume.extra.get("device") == "/dev/sdf"]
    driver.destroy_node(node)
    until(node, NodeState.TERMINATED)
    for volume in volumes:
        driver.destroy_volume(volume)
print("destroy", flush=True)

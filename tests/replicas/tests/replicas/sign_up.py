"""Signs a customer up: their row and the request for their instance, in one transaction.

Arguments: the database's URL, the role, the schema of the control plane, that of the shop, the customer's name, and "commit" or
"rollback". Prints the id of the operation.
"""

import sys

import psycopg
from psycopg.types.json import Jsonb

url, role, control_plane, shop, name, ending = sys.argv[1:]
parameters = {"tenant": name, "spec": {"workload": {"version": "1.0"}}}

with psycopg.connect(url) as connection:
    connection.execute(f"SET ROLE {role}")
    connection.commit()
    with connection.transaction():
        connection.execute(f"INSERT INTO {shop}.customers (name) VALUES (%s)", [name])
        submit = f"SELECT {control_plane}.submit('create', %s, %s, 'signup', key => %s)"
        print(connection.execute(submit, [name, Jsonb(parameters), f"sign-up {name}"]).fetchone()[0])
        if ending == "rollback":
            raise psycopg.Rollback

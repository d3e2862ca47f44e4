//! The function that puts a request into the inbox, called by drivers and languages that know nothing of this project, in
//! transactions of their own.

use std::{env, ops::Deref, path::Path, process::Command};

use test_replicas::command::{Answer, Ask};
use tokio::task::spawn_blocking;

use crate::world::{Database, World};

/// Where `cargo xtask peers` makes it.
const PYTHON: &str = "/var/tmp/provisioner-peers/psycopg/bin/python";

/// Whether the program in Python can run here.
pub(crate) fn python() -> Result<(), String> {
    match Path::new(PYTHON).exists() {
        true => Ok(()),
        false => Err("psycopg is not here: cargo xtask peers prepares it".to_owned()),
    }
}

/// Whether a run does not count without it.
pub(crate) fn python_is_required() -> bool {
    env::var("REQUIRED_PEERS").unwrap_or_default().split(',').any(|peer| peer.trim() == "psycopg")
}

/// Somebody's own tables beside those of the control plane, and a user who may do no more there than submit. Dropped with this.
#[derive(Debug)]
struct Shop(Door);

/// What a caller knows.
#[derive(Debug, Clone)]
struct Door {
    url: String,
    control_plane: String,
    schema: String,
    role: String,
}

impl Shop {
    async fn open(database: &Database) -> Self {
        let control_plane = database.schema.clone();
        let (schema, role) = (format!("{control_plane}_shop"), format!("{control_plane}_signup"));
        let setup = format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {schema}.customers (name text PRIMARY KEY); CREATE ROLE {role};
             GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT, INSERT ON {schema}.customers TO {role};
             GRANT USAGE ON SCHEMA {control_plane} TO {role}; GRANT EXECUTE ON FUNCTION {control_plane}.submit TO {role}"
        );
        database.rows(&setup).await;
        Self(Door { url: database.url.clone(), control_plane, schema, role })
    }
}

impl Deref for Shop {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.0
    }
}

impl Door {
    fn insert(&self) -> String {
        format!("INSERT INTO {}.customers (name) VALUES ($1)", self.schema)
    }

    fn submit(&self) -> String {
        format!(
            "SELECT {}.submit('create', $1, $2::text::jsonb, 'signup', key => 'sign-up ' || $1)",
            self.control_plane
        )
    }

    fn parameters(name: &str) -> String {
        format!(r#"{{"tenant": "{name}", "spec": {{"workload": {{"version": "1.0"}}}}}}"#)
    }

    fn become_caller(&self) -> String {
        format!("SET ROLE {}", self.role)
    }

    /// With the driver `postgres`, which waits.
    async fn sign_up(&self, name: &str, commits: bool) -> String {
        let (this, name) = (self.clone(), name.to_owned());
        let signing_up = spawn_blocking(move || {
            let mut client = postgres::Client::connect(&this.url, postgres::NoTls).unwrap();
            client.batch_execute(&this.become_caller()).unwrap();
            let mut transaction = client.transaction().unwrap();
            transaction.execute(&this.insert(), &[&name]).unwrap();
            let submitted = transaction.query_one(&this.submit(), &[&name, &Self::parameters(&name)]).unwrap();
            if commits { transaction.commit() } else { transaction.rollback() }.unwrap();
            submitted.get(0)
        });
        signing_up.await.unwrap()
    }

    /// With a program in Python.
    async fn sign_up_in_python(&self, name: &str, ending: &str) -> String {
        let mut command = Command::new(PYTHON);
        command.args(["-c", include_str!("sign_up.py")]);
        command.args([&self.url, &self.role, &self.control_plane, &self.schema, name, ending]);
        let output = spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let Door { url, schema, role, .. } = self.0.clone();
        let dropping = std::thread::spawn(move || {
            let Ok(mut client) = postgres::Client::connect(&url, postgres::NoTls) else { return };
            let _ =
                client.batch_execute(&format!("DROP SCHEMA {schema} CASCADE; DROP OWNED BY {role}; DROP ROLE {role}"));
        });
        let _ = dropping.join();
    }
}

/// Customer, operation and instance are there.
async fn is_there(world: &World, shop: &Shop, name: &str, operation: &str) {
    world.done(operation).await;
    assert_eq!(world.provider.thing(name).unwrap().id.as_str(), name);
    assert_eq!(customers(world, shop, name).await, 1);
}

/// None of them is, or ever was.
async fn never_was(world: &World, shop: &Shop, name: &str, operation: &str) {
    assert_eq!(customers(world, shop, name).await, 0);
    assert_eq!(world.look(name).await, None);
    assert!(!world.provider.made().contains_key(name));
    match world.replicas()[0].insist(Ask::Wait { operation: operation.to_owned() }).await {
        Answer::Failed { kind, .. } => assert_eq!(kind, "not-found"),
        other => panic!("{name}: {other:?}"),
    }
}

async fn customers(world: &World, shop: &Shop, name: &str) -> u64 {
    world.database.number(&format!("SELECT count(*) FROM {}.customers WHERE name = '{name}'", shop.schema)).await
}

/// With the drivers `tokio-postgres` and `postgres`.
pub(crate) async fn together() {
    let world = World::with(Database::shared(), &["a", "b"]).await;
    let shop = Shop::open(&world.database).await;
    let mut client = world.database.connect().await;
    client.batch_execute(&shop.become_caller()).await.unwrap();
    // One is on its way while others come and go.
    let transaction = client.transaction().await.unwrap();
    transaction.execute(&shop.insert(), &[&"slow"]).await.unwrap();
    let submitted = transaction.query_one(&shop.submit(), &[&"slow", &Door::parameters("slow")]).await.unwrap();
    let slow: String = submitted.get(0);
    let given_up = shop.sign_up("given-up", false).await;
    let quick = shop.sign_up("quick", true).await;
    is_there(&world, &shop, "quick", &quick).await;
    never_was(&world, &shop, "given-up", &given_up).await;
    never_was(&world, &shop, "slow", &slow).await;
    transaction.commit().await.unwrap();
    is_there(&world, &shop, "slow", &slow).await;
    // What fails for the customer's sake is never asked for.
    let transaction = client.transaction().await.unwrap();
    let submitted = transaction.query_one(&shop.submit(), &[&"twice", &Door::parameters("twice")]).await.unwrap();
    let twice: String = submitted.get(0);
    transaction.execute(&shop.insert(), &[&"quick"]).await.unwrap_err();
    transaction.commit().await.unwrap();
    // Whoever has no more than that right cannot read or write anything else.
    let peeking = format!("SELECT count(*) FROM {}.instances", shop.control_plane);
    client.query(&peeking, &[]).await.unwrap_err();
    let last = shop.sign_up("last", true).await;
    is_there(&world, &shop, "last", &last).await;
    never_was(&world, &shop, "twice", &twice).await;
    world.exactly(&["quick".into(), "slow".into(), "last".into()]).await;
}

/// With Python's `psycopg`, which speaks to the server by PostgreSQL's own library.
pub(crate) async fn together_in_python() {
    let world = World::with(Database::shared(), &["a", "b"]).await;
    let shop = Shop::open(&world.database).await;
    let given_up = shop.sign_up_in_python("given-up", "rollback").await;
    let kept = shop.sign_up_in_python("kept", "commit").await;
    is_there(&world, &shop, "kept", &kept).await;
    never_was(&world, &shop, "given-up", &given_up).await;
    world.exactly(&["kept".into()]).await;
}

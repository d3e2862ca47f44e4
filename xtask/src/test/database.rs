//! The database that the tests of a run share, so that each of their processes need not start a server of its own.

use std::{env, process::Command};

use test_peers::postgres::{Durability, Programs, Server, VARIABLE};

/// A PostgreSQL server for one run, if there can be one and nobody named another. It ends when this is dropped or this program ends, in
/// whatever way.
#[derive(Debug, Default)]
pub(crate) struct Database {
    server: Option<Server>,
}

impl Database {
    /// Starts the server, unless `DATABASE_URL` names a database. Where it cannot be, the tests that want it tell the reason.
    pub(crate) fn start() -> Self {
        let is_named = env::var_os(VARIABLE).is_some_and(|url| !url.is_empty());
        if is_named || Programs::find().is_err() {
            return Self::default();
        }
        match Server::create(Durability::Fast) {
            Ok(server) => Self { server: Some(server) },
            Err(error) => {
                println!("no PostgreSQL server for this run: {error}");
                Self::default()
            }
        }
    }

    /// Tells a command where it is. That of `DATABASE_URL` it knows.
    pub(crate) fn tell<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        match &self.server {
            Some(server) => command.env(VARIABLE, server.url()),
            None => command,
        }
    }
}

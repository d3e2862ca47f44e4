//! The backend at an API server that is killed again and again, with real pods: all converges, and nothing that is there is
//! told to be absent.
#![allow(missing_docs)]

mod api_server;
// Everything in it is used by the contract, and a part of it here.
#[allow(dead_code)]
#[path = "../contract/cluster.rs"]
mod cluster;
mod fleet;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use test_peers::kubernetes::is_required;
use tokio::runtime::Runtime;

use crate::{api_server::ApiServer, cluster::Cluster, fleet::Fleet};

fn main() {
    let name = "instances_converge_while_their_api_server_is_killed";
    let trials = vec![Trial::ignorable_test(name, || {
        // On this thread, with which the API server ends.
        Runtime::new()?.block_on(converge())
    })];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

async fn converge() -> Result<Completion, Failed> {
    let prepared = async {
        let cluster = Cluster::ready().await?;
        let server = ApiServer::beside(&cluster.peer).await?;
        Ok::<_, String>((cluster, server))
    };
    let (cluster, mut server) = match prepared.await {
        Ok(prepared) => prepared,
        Err(reason) if is_required() => return Err(format!("kubernetes is required: {reason}").into()),
        Err(reason) => return Ok(Completion::ignored_with(reason)),
    };
    tokio::spawn(cluster.clone().make_volumes());
    let fleet = Fleet::new(&cluster, &server);
    let lived = live(&fleet, &mut server).await;
    // Also where it failed: nothing stays on the cluster.
    fleet.remove_all().await?;
    lived?;
    Ok(Completion::Completed)
}

async fn live(fleet: &Fleet, server: &mut ApiServer) -> Result<(), String> {
    server.start().await?;
    for kind in fleet::KINDS {
        // Or to see such a watch would say nothing of the backend's.
        let open = server.watches(kind).await?;
        if open != 0 {
            return Err(format!("{open} watches of {kind} are open before the backend's"));
        }
    }
    let killed = async {
        fleet.until("a first namespace", |seen| seen.namespaces > 0).await?;
        fleet.endure_a_restart_of(server).await?;
        // In the midst of making one, if that is seen before there are too few left.
        fleet.until("a second", |seen| seen.sets > 1 && (seen.namespaces > seen.sets || seen.sets > 2)).await?;
        fleet.endure_a_restart_of(server).await?;
        fleet.until("most of them", |seen| seen.sets > 4).await?;
        fleet.endure_a_restart_of(server).await?;
        // And when there is nothing left to do.
        fleet.until("all running", |seen| seen.running == fleet::INSTANCES).await?;
        fleet.endure_a_restart_of(server).await?;
        fleet.enough();
        Ok(())
    };
    tokio::try_join!(fleet.all_up(), fleet.looked_after(), killed)?;
    fleet.expect_one_of_each().await?;
    fleet.expect_to_hear_of_others(server).await?;

    let killed = async {
        fleet.until("a first one on its way out", |seen| seen.ending > 0).await?;
        fleet.endure_a_restart_of(server).await?;
        fleet.until("none", |seen| seen.namespaces == 0).await?;
        fleet.enough();
        Ok(())
    };
    tokio::try_join!(fleet.all_down(), fleet.looked_after(), killed).map(drop)
}

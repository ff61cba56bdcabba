//! SIGKILL at random times under load, repeated on one database.

use crate::load::{Place, no_turn_is_lost};
use crate::support::postgres::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_turn_is_lost_and_no_history_torn_by_kills() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.create("kills").await;
    let place = Place {
        // A short lease, because the sessions of a killed server are unavailable until it expires.
        flags: &["--session-store", &url, "--session-lease", "1s"],
        is_whole: &|_| (),
    };
    no_turn_is_lost(&place).await;
}

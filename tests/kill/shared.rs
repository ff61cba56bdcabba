//! Two servers on one directory: the disk is the truth.

use std::time::Duration;

use crate::support::process::Process;
use crate::two_servers::{
    TwoServers, busy_until_the_other_is_killed, each_continues_where_the_other_stopped,
    turns_at_once,
};

fn start() -> TwoServers<tempfile::TempDir> {
    let place = tempfile::tempdir().expect("a directory");
    let servers = std::array::from_fn(|_| Process::on(place.path(), &[]));
    TwoServers { servers, place }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_goes_on_where_the_other_stopped() {
    each_continues_where_the_other_stopped(start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_at_once_are_in_the_history_or_were_refused() {
    turns_at_once(start(), "error").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_at_once_that_wait_are_all_in_the_history() {
    turns_at_once(start(), "wait").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_other_is_on_is_busy_and_is_free_when_it_is_killed() {
    busy_until_the_other_is_killed(start(), Duration::from_millis(300)).await;
}

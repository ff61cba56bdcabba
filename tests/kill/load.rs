//! The load of the kill tests, and the checks after each kill.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::client::Client;
use crate::random::Random;
use crate::reference::{Choice, Reference};
use crate::support::caller::{Caller, said};
use crate::support::process::Process;

/// Kills in an ordinary run.
const KILLS: usize = 8;
/// Keys of the clients.
const KEYS: [Option<&str>; 5] = [None, Some("sk-1"), Some("sk-2"), Some("sk-3"), Some("sk-4")];
/// Greedy turn with which every session must continue as without a kill.
const PROBE: (&str, usize) = (" And then", 4);

/// A session store.
pub struct Place<'a> {
    /// Flags of the server.
    pub flags: &'a [&'a str],
    /// Further check after a kill, on the server that was started after it.
    pub is_whole: &'a (dyn Fn(&Process) + Sync),
}

/// Kills a server under load repeatedly, and asserts that completed turns are kept.
pub async fn no_turn_is_lost(place: &Place<'_>) {
    let kills = number("SKALD_KILLS").map_or(KILLS, |kills| kills as usize);
    let mut random = Random::new(seed());
    let reference = Reference::start();
    let mut clients = clients(&mut random);
    let mut server = Process::start(place.flags);
    for kill in 1..=kills {
        clients = killed_under_load(&mut server, clients, &mut random, &reference).await;
        if random.percent(20) {
            killed_at_the_start(place.flags, &mut random);
        }
        server = Process::start(place.flags);
        let caller = server.caller();
        let checks = clients
            .iter_mut()
            .map(|client| check(client, &caller, &reference));
        join_all(checks).await;
        (place.is_whole)(&server);
        assert_eq!(server.warnings(), Vec::<String>::new(), "kill {kill}");
        let turns: usize = clients.iter().map(|client| client.turns).sum();
        println!("kill {kill}: {turns} turns so far, every one of them kept");
    }
    let turns: usize = clients.iter().map(|client| client.turns).sum();
    assert!(turns >= kills, "{turns} turns are no load");
    server.stop();
}

/// Returns the seed of this run's choices.
pub fn seed() -> u64 {
    let seed =
        number("SKALD_KILL_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 32);
    println!("SKALD_KILL_SEED={seed}");
    seed
}

/// Creates clients without sessions.
pub fn clients(random: &mut Random) -> Vec<Client> {
    KEYS.into_iter()
        .map(|key| Client::new(key, random.split()))
        .collect()
}

/// Returns a number from the environment.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Runs all clients against a server and kills it, sometimes during a graceful stop. Returns the clients.
async fn killed_under_load(
    server: &mut Process,
    clients: Vec<Client>,
    random: &mut Random,
    reference: &Reference,
) -> Vec<Client> {
    let caller = server.caller();
    let running: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let (caller, reference) = (caller.clone(), reference.clone());
            tokio::spawn(async move {
                client.run(&caller, &reference).await;
                client
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(random.within(50..2500) as u64)).await;
    if random.percent(25) {
        server.terminate();
        tokio::time::sleep(Duration::from_millis(random.within(0..600) as u64)).await;
    }
    server.kill();
    join_all(running)
        .await
        .into_iter()
        .map(|client| client.expect("a client that saw what it may see"))
        .collect()
}

/// Starts a server and kills it before it may be ready.
fn killed_at_the_start(flags: &[&str], random: &mut Random) {
    let mut server = Process::spawn(flags);
    std::thread::sleep(Duration::from_millis(random.within(0..400) as u64));
    server.kill();
}

/// Asserts that each session of a client has an allowed history, and continues as without a cache.
pub async fn check(client: &mut Client, caller: &Caller, reference: &Reference) {
    let caller = client.asking(caller);
    for (name, tale) in &mut client.tales {
        let found = caller.history(name).await;
        if let Err(wrong) = tale.settle(found, reference).await {
            panic!("{name} of {:?}: {wrong}", client.key);
        }
    }
    let list = caller.get("/v1/sessions").await.ok();
    let mut listed: Vec<(&str, usize)> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|session| {
            let tokens = session["token_count"].as_u64().expect("a number");
            (session["id"].as_str().expect("a name"), tokens as usize)
        })
        .collect();
    listed.sort_unstable();
    let there = client.tales.iter().filter(|(_, tale)| tale.known.is_some());
    let there: Vec<(&str, usize)> = there
        .map(|(name, tale)| (name.as_str(), tale.len()))
        .collect();
    assert_eq!(listed, there, "the list of {:?}", client.key);

    for (name, tale) in &mut client.tales {
        let Some(history) = tale.known.clone() else {
            continue;
        };
        let (inputs, max_tokens) = PROBE;
        let body = json!({
            "inputs": inputs, "session_id": name,
            "parameters": {"max_new_tokens": max_tokens, "do_sample": false, "details": true},
        });
        let continued = said(&caller.post("/generate", body).await.ok());
        let prompt = reference.ids(inputs);
        let context = [history, prompt.clone()].concat();
        let expected = reference.next(&context, Choice::Greedy, max_tokens).await;
        assert_eq!(continued, expected, "{name} of {:?} goes on", client.key);
        tale.said(&prompt, &continued);
    }
}

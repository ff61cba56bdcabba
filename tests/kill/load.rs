//! The load of the kill tests, and what must be true after each kill.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::client::Client;
use crate::random::Random;
use crate::reference::{Choice, Reference};
use crate::support::caller::{Caller, said};
use crate::support::process::Process;

/// Kills of an ordinary run.
const KILLS: usize = 8;
/// Who asks: some of them with names that others use too.
const KEYS: [Option<&str>; 5] = [None, Some("sk-1"), Some("sk-2"), Some("sk-3"), Some("sk-4")];
/// The greedy turn that every session must continue with as if nothing had happened.
const PROBE: (&str, usize) = (" And then", 4);

/// Where sessions are.
pub struct Place<'a> {
    /// Flags of the server.
    pub flags: &'a [&'a str],
    /// What else must be true after a kill, of the server that was started after it.
    pub is_whole: &'a (dyn Fn(&Process) + Sync),
}

/// Kills a server under load, again and again: no turn that has ended is lost.
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

/// The seed of this run's choices.
pub fn seed() -> u64 {
    let seed =
        number("SKALD_KILL_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 32);
    println!("SKALD_KILL_SEED={seed}");
    seed
}

/// Clients that know of no session yet.
pub fn clients(random: &mut Random) -> Vec<Client> {
    KEYS.into_iter()
        .map(|key| Client::new(key, random.split()))
        .collect()
}

/// A number in the environment.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Lets all clients loose on a server and kills it; sometimes it was asked to stop before.
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

/// A server that gets no time to become ready.
fn killed_at_the_start(flags: &[&str], random: &mut Random) {
    let mut server = Process::spawn(flags);
    std::thread::sleep(Duration::from_millis(random.within(0..400) as u64));
    server.kill();
}

/// Every session of a client is as it must be, and goes on as without any cache.
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

//! One client of the load: turns of all kinds, forks, rewinds and deletions on its own sessions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ledger::{Doubt, Tale, Turn};
use crate::random::Random;
use crate::reference::{Choice, Reference, TOP_K};
use crate::support::caller::{Caller, said, token_ids};
use crate::support::pace::PATIENCE;
use crate::support::sse::Live;

/// The server is gone or about to stop.
#[derive(Debug)]
pub struct Gone;

impl From<reqwest::Error> for Gone {
    fn from(_: reqwest::Error) -> Self {
        Self
    }
}

/// Form of a request for a turn.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// The native dialect, as one answer.
    Whole,
    /// The native dialect, as a stream read to its end.
    Stream,
    /// The native dialect, as a stream that the client abandons.
    Left,
    /// OpenAI's dialect, as one answer, which has no token ids.
    Completion,
}

/// Histories longer than this are cut or deleted, so that all fit the window.
const LONG: usize = 700;
/// Maximum sessions per client.
const SESSIONS: usize = 4;

const BEGINNINGS: [&str; 6] = [
    " Once upon a time",
    " The wolf said to the little girl,",
    " And when the king had heard of it, he sent for his three sons and",
    " so",
    "\n\nThere was",
    " In the morning the old woman went out into the forest to gather wood, and there she met",
];

/// A client with sessions of its own, which no other client uses.
pub struct Client {
    /// API key, if any.
    pub key: Option<&'static str>,
    /// All its sessions, including deleted ones.
    pub tales: BTreeMap<String, Tale>,
    /// Completed turns.
    pub turns: usize,
    random: Random,
    made: usize,
}

impl Client {
    pub fn new(key: Option<&'static str>, random: Random) -> Self {
        Self {
            key,
            tales: BTreeMap::new(),
            turns: 0,
            random,
            made: 0,
        }
    }

    /// Returns a caller with the client's key.
    pub fn asking(&self, caller: &Caller) -> Caller {
        match self.key {
            Some(key) => caller.with_key(key),
            None => caller.clone(),
        }
    }

    /// Performs one operation after another until the server is gone.
    pub async fn run(&mut self, caller: &Caller, reference: &Reference) {
        let caller = self.asking(caller);
        while self.step(&caller, reference).await.is_ok() {}
    }

    /// Performs one operation.
    pub async fn step(&mut self, caller: &Caller, reference: &Reference) -> Result<(), Gone> {
        let there: Vec<String> = self.there().map(str::to_owned).collect();
        let name = match self.random.below(10) {
            0..6 if !there.is_empty() => self.random.pick(&there).clone(),
            _ if there.len() < SESSIONS => self.name(),
            _ => self.random.pick(&there).clone(),
        };
        let length = self.tales.get(&name).map_or(0, Tale::len);
        match self.random.below(20) {
            _ if length > LONG && self.random.percent(50) => self.delete(caller, &name).await,
            0 if length > 0 => self.delete(caller, &name).await,
            1..=2 if length > 1 => self.rewind(caller, &name).await,
            _ if length > LONG => self.rewind(caller, &name).await,
            3..=5 if length > 0 && there.len() < SESSIONS => self.fork(caller, &name).await,
            _ => self.turn(caller, &name, reference).await,
        }
    }

    /// Returns the names of the existing sessions.
    pub fn there(&self) -> impl Iterator<Item = &str> {
        let tales = self.tales.iter();
        tales.filter_map(|(name, tale)| tale.known.is_some().then_some(name.as_str()))
    }

    /// Returns a name that was never used, or that of a deleted session.
    fn name(&mut self) -> String {
        let given_up = self.tales.iter().find(|(_, tale)| tale.known.is_none());
        if let Some((name, _)) = given_up
            && self.random.percent(50)
        {
            return name.clone();
        }
        self.made += 1;
        format!("tale-{}", self.made)
    }

    fn tale(&mut self, name: &str) -> &mut Tale {
        self.tales.entry(name.to_owned()).or_default()
    }

    async fn turn(
        &mut self,
        caller: &Caller,
        name: &str,
        reference: &Reference,
    ) -> Result<(), Gone> {
        let turn = Turn {
            inputs: (*self.random.pick(&BEGINNINGS)).to_owned(),
            choice: if self.random.percent(50) {
                Choice::Greedy
            } else {
                Choice::Drawn {
                    tenths: self.random.within(5..13) as u8,
                    seed: self.random.within(1..1_000_000) as u64,
                }
            },
            max_tokens: self.random.within(1..40),
        };
        let form = *self.random.pick(&[
            Form::Whole,
            Form::Whole,
            Form::Stream,
            Form::Stream,
            Form::Left,
            Form::Completion,
        ]);
        self.tale(name).doubt = Some(Doubt::Turn(turn.clone()));
        match form {
            Form::Whole => {
                let answer = caller.try_post("/generate", &native(name, &turn)).await?;
                let answer = accepted(answer.status, answer.body)?;
                self.tale(name)
                    .said(&reference.ids(&turn.inputs), &said(&answer));
            }
            Form::Stream => {
                let (told, _) = self.read(caller, name, &turn, usize::MAX).await?;
                self.tale(name).said(&reference.ids(&turn.inputs), &told);
            }
            Form::Left => self.leave(caller, name, &turn, reference).await?,
            Form::Completion => self.complete(caller, name, turn, reference).await?,
        }
        self.turns += 1;
        Ok(())
    }

    /// Reads `events` events of a stream. Returns its tokens, and whether it has ended.
    async fn read(
        &mut self,
        caller: &Caller,
        name: &str,
        turn: &Turn,
        events: usize,
    ) -> Result<(Vec<u32>, bool), Gone> {
        let response = caller
            .try_send("/generate_stream", &native(name, turn))
            .await?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(accepted(status, response.text().await?.into()).expect_err("a status"));
        }
        let mut stream = Live::new(response);
        let mut told = Vec::new();
        for _ in 0..events {
            let event = stream.next().await?.ok_or(Gone)?;
            // A stopping server gives up what takes too long.
            if event.get("error").is_some() {
                return Err(Gone);
            }
            if event["token"]["special"] == false {
                told.extend(token_ids(&json!([event["token"]["id"]])));
            }
            // The turn is committed before the last event is sent.
            if event["generated_text"].is_string() {
                return Ok((told, true));
            }
        }
        Ok((told, false))
    }

    /// Disconnects in the middle of a stream. The session then keeps at least the received tokens.
    async fn leave(
        &mut self,
        caller: &Caller,
        name: &str,
        turn: &Turn,
        reference: &Reference,
    ) -> Result<(), Gone> {
        let events = self.random.within(1..8);
        let (told, ended) = self.read(caller, name, turn, events).await?;
        let prompt = reference.ids(&turn.inputs);
        if ended {
            self.tale(name).said(&prompt, &told);
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        let found = loop {
            let answer = caller.try_get(&format!("/v1/sessions/{name}")).await?;
            if answer.status != 404 {
                let session = accepted(answer.status, answer.body)?;
                if session["busy"] == false {
                    break token_ids(&session["tokens"]);
                }
            }
            assert!(Instant::now() < deadline, "{name} is not settled");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let tale = self.tale(name);
        let at_least = [tale.known.as_deref().unwrap_or_default(), &prompt, &told].concat();
        assert!(
            found.starts_with(&at_least),
            "{name}: {} tokens were known and {} received, of {}; {} are left",
            tale.len(),
            told.len(),
            turn.max_tokens,
            found.len()
        );
        tale.settle(Some(found), reference)
            .await
            .expect("a beginning");
        Ok(())
    }

    async fn complete(
        &mut self,
        caller: &Caller,
        name: &str,
        turn: Turn,
        reference: &Reference,
    ) -> Result<(), Gone> {
        let mut body = json!({
            "prompt": turn.inputs, "max_tokens": turn.max_tokens, "session_id": name,
            "temperature": turn.choice.temperature(),
        });
        if let Choice::Drawn { seed, .. } = turn.choice {
            body["seed"] = json!(seed);
            body["top_k"] = json!(TOP_K);
        }
        let answer = caller.try_post("/v1/completions", &body).await?;
        let answer = accepted(answer.status, answer.body)?;
        let text = answer["choices"][0]["text"].as_str().expect("a text");
        self.tale(name).doubt = Some(Doubt::Said {
            inputs: turn.inputs,
            text: text.to_owned(),
        });
        let found = caller.try_get(&format!("/v1/sessions/{name}")).await?;
        let found = accepted(found.status, found.body)?;
        let found = token_ids(&found["tokens"]);
        let tale = self.tale(name);
        tale.settle(Some(found), reference).await.expect("its text");
        Ok(())
    }

    async fn fork(&mut self, caller: &Caller, name: &str) -> Result<(), Gone> {
        let copy = self.name();
        let history = self.tale(name).known.clone().expect("there is one");
        let at = self.random.within(1..history.len() + 1);
        let after = Some(history[..at].to_vec());
        self.tale(&copy).doubt = Some(Doubt::Change(after.clone()));
        let path = format!("/v1/sessions/{name}/fork");
        let answer = caller
            .try_post(&path, &json!({"id": copy, "at": at}))
            .await?;
        accepted(answer.status, answer.body)?;
        self.tale(&copy).is_now(after);
        Ok(())
    }

    async fn rewind(&mut self, caller: &Caller, name: &str) -> Result<(), Gone> {
        let history = self.tale(name).known.clone().expect("there is one");
        let tokens = self.random.within(1..history.len());
        let after = Some(history[..history.len() - tokens].to_vec());
        self.tale(name).doubt = Some(Doubt::Change(after.clone()));
        let path = format!("/v1/sessions/{name}/rewind");
        let answer = caller.try_post(&path, &json!({"tokens": tokens})).await?;
        accepted(answer.status, answer.body)?;
        self.tale(name).is_now(after);
        Ok(())
    }

    async fn delete(&mut self, caller: &Caller, name: &str) -> Result<(), Gone> {
        self.tale(name).doubt = Some(Doubt::Change(None));
        let answer = caller.try_delete(&format!("/v1/sessions/{name}")).await?;
        accepted(answer.status, answer.body)?;
        self.tale(name).is_now(None);
        Ok(())
    }
}

/// Returns a turn in the native dialect.
fn native(name: &str, turn: &Turn) -> Value {
    let mut parameters = json!({"max_new_tokens": turn.max_tokens, "details": true});
    match turn.choice {
        Choice::Greedy => parameters["do_sample"] = json!(false),
        Choice::Drawn { seed, .. } => {
            parameters["temperature"] = json!(turn.choice.temperature());
            parameters["top_k"] = json!(TOP_K);
            parameters["seed"] = json!(seed);
        }
    }
    json!({"inputs": turn.inputs, "session_id": name, "parameters": parameters})
}

/// Returns the body of a successful answer; `Gone` if the server is about to stop.
#[track_caller]
fn accepted(status: u16, body: Value) -> Result<Value, Gone> {
    match status {
        200 | 201 => Ok(body),
        503 => Err(Gone),
        // The connection to the database broke during the commit.
        500 if is_unknown(&body) => Err(Gone),
        status => panic!("{status}: {body}"),
    }
}

/// Returns whether an answer reports an unknown outcome of the commit, in either dialect.
fn is_unknown(body: &Value) -> bool {
    let names = [&body["error_type"], &body["error"]["code"]];
    names.contains(&&json!("session_state_unknown"))
}

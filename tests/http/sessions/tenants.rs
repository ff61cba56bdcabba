//! Sessions belong to the key that created them.

use serde_json::json;

use super::start;
use crate::support::client;
use crate::sessions::{COMPLETIONS, is_refused, prompt, turn};

#[tokio::test]
async fn the_same_name_is_another_session_under_another_key() {
    let server = start();
    let nobody = server.caller();
    let callers = [
        nobody.clone(),
        nobody.with_key("sk-1"),
        nobody.with_key("sk-2"),
    ];
    for (n, caller) in callers.iter().enumerate() {
        caller
            .post(COMPLETIONS, turn("tale", &prompt(20 + n, n), 2))
            .await
            .ok();
    }
    for (n, caller) in callers.iter().enumerate() {
        let history = caller.history("tale").await.unwrap();
        assert_eq!(history.len(), 22 + n);
        assert_eq!(history[0] as usize, prompt(1, n)[0]);
        let list = caller.get("/v1/sessions").await.ok();
        assert_eq!(list["data"].as_array().unwrap().len(), 1);
        assert_eq!(list["data"][0]["token_count"], 22 + n);
    }
    callers[1].delete("/v1/sessions/tale").await.ok();
    assert_eq!(callers[1].session("tale").await.status, 404);
    assert!(callers[0].history("tale").await.is_some());
    assert!(callers[2].history("tale").await.is_some());
}

#[tokio::test]
async fn anothers_session_is_as_if_it_were_not_there() {
    let server = start();
    let owner = server.caller().with_key("sk-owner");
    owner
        .post(COMPLETIONS, turn("mine", &prompt(20, 1), 2))
        .await
        .ok();
    for other in [server.caller(), server.caller().with_key("sk-other")] {
        for answer in [
            other.session("mine").await,
            other.delete("/v1/sessions/mine").await,
            other.fork("mine", json!({"id": "copy"})).await,
            other.rewind("mine", json!({"tokens": 1})).await,
        ] {
            is_refused(&answer, 404, "not_found", &["\"mine\""]);
        }
        assert_eq!(other.get("/v1/sessions").await.ok()["data"], json!([]));
        // Nor is the name reserved.
        other.post(COMPLETIONS, turn("own", &[1, 2], 1)).await.ok();
        other.fork("own", json!({"id": "mine"})).await.created();
        other.delete("/v1/sessions/own").await.ok();
        other.delete("/v1/sessions/mine").await.ok();
    }
    assert_eq!(owner.history("mine").await.unwrap().len(), 22);
}

/// The scheme of HTTP's authorization may be in any case, followed by any number of spaces.
#[tokio::test]
async fn the_key_is_the_same_however_its_scheme_is_written() {
    let server = start();
    let caller = server.caller().with_key("sk-1");
    caller
        .post(COMPLETIONS, turn("tale", &[1, 2], 1))
        .await
        .ok();
    let status = |value: &'static str| {
        let url = server.url("/v1/sessions/tale");
        async move {
            let request = client().get(url).header("authorization", value);
            request.send().await.unwrap().status().as_u16()
        }
    };
    assert_eq!(status("Bearer sk-1").await, 200);
    assert_eq!(status("bearer sk-1").await, 200);
    assert_eq!(status("Bearer   sk-1").await, 200);
    assert_eq!(status("Bearer sk-12").await, 404);
    assert_eq!(status("Bearer SK-1").await, 404);
    assert_eq!(status("Bearer ").await, 404);
}

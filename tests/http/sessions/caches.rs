//! Cached prefixes belong to a key, unless `--share-prefix-cache` is set.

use crate::sessions::{COMPLETIONS, prompt, turn};
use crate::support::process::Process;

#[tokio::test]
async fn a_key_does_not_show_by_its_caches_what_others_asked() {
    let cached = |caller: crate::support::caller::Caller| async move {
        let answer = caller
            .post(COMPLETIONS, crate::sessions::fresh(&prompt(100, 1), 1))
            .await
            .ok();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone()
    };
    let server = Process::start(&[]);
    let caller = server.caller();
    assert_eq!(cached(caller.clone()).await, 0);
    assert_eq!(cached(caller.with_key("a")).await, 0);
    assert_eq!(cached(caller.with_key("b")).await, 0);
    assert_eq!(cached(caller.with_key("b")).await, 99);
    assert_eq!(cached(caller).await, 99);

    let server = Process::start(&["--share-prefix-cache"]);
    let caller = server.caller();
    assert_eq!(cached(caller.with_key("a")).await, 0);
    assert_eq!(cached(caller.with_key("b")).await, 99);
    assert_eq!(cached(caller.clone()).await, 99);
    // Sessions still belong to a key.
    let a = caller.with_key("a");
    a.post(COMPLETIONS, turn("tale", &[1, 2], 1)).await.ok();
    assert_eq!(caller.with_key("b").session("tale").await.status, 404);
}

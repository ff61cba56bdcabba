//! Usage of each API key, labelled with its name. The names come from the key file, so clients can't
//! create series.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::keys::Keys;
use crate::keys::usage::Totals;

/// The label of a key's counters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KeyLabel {
    key: String,
}

/// A counter by key.
type ByKey = Family<KeyLabel, Counter>;

/// Returns the counters of all keys as they are now, with their names and help.
pub(super) fn counters(keys: &Keys) -> [(&'static str, &'static str, ByKey); 3] {
    let by_key = |of: fn(Totals) -> u64| {
        let family = ByKey::default();
        for account in keys.all() {
            let key = account.key.name.as_str().to_owned();
            let counter = family.get_or_create(&KeyLabel { key }).clone();
            counter.inc_by(of(account.usage.totals()));
        }
        family
    };
    [
        (
            "key_requests",
            "Accepted requests by API key",
            by_key(|totals| totals.requests),
        ),
        (
            "key_prompt_tokens",
            "Prompt tokens by API key, session history included",
            by_key(|totals| totals.prompt_tokens),
        ),
        (
            "key_generated_tokens",
            "Generated tokens by API key",
            by_key(|totals| totals.generated_tokens),
        ),
    ]
}

//! Redaction of URLs: messages and logs must not contain user names, passwords or queries, which may hold
//! keys.

/// Returns a URL without user name, password, query and fragment. The URL need not be valid: everything
/// before the last `@` is removed in any case.
#[must_use]
pub fn shown_url(url: &str) -> String {
    let whole = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = match whole.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), whole),
    };
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    format!("{scheme}{rest}")
}

#[cfg(test)]
mod tests {
    use super::shown_url;

    #[test]
    fn a_shown_url_has_no_secrets() {
        for (url, shown) in [
            ("http://host:1/a", "http://host:1/a"),
            ("http://user:secret@host:1/a", "http://host:1/a"),
            ("http://user:se/cr@et@host", "http://host"),
            ("https://host/?key=secret#secret", "https://host/"),
            ("user:secret@host", "host"),
            ("", ""),
        ] {
            assert_eq!(shown_url(url), shown);
        }
    }
}

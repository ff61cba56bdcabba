//! Turning traces on and off, by Skald's setting and by the standard variables.

use std::io::Write;

use serde_json::{Value, json};

use super::collector::Collector;
use super::{AT_ONCE, answer, post};
use crate::support::process::{Process, skald};

/// Asserts that the command fails with exit code 2 and a message that contains all of `words`.
#[track_caller]
fn is_refused(environment: &[(&str, &str)], flags: &[&str], words: &[&str]) {
    let mut command = skald(&[&["serve", "--listen", "127.0.0.1:0"], flags].concat());
    let output = command.envs(environment.iter().copied()).output();
    let output = output.expect("skald runs");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} in {message}");
    }
}

#[test]
fn a_malformed_endpoint_is_refused_and_its_setting_named() {
    let good = "http://localhost:4318";
    is_refused(
        &[],
        &["--otlp-endpoint", "collector:4318"],
        &["otlp-endpoint", "collector:4318", good],
    );
    is_refused(
        &[("SKALD_OTLP_ENDPOINT", "nothing")],
        &[],
        &["otlp-endpoint", "nothing", good],
    );
    for variable in [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ] {
        is_refused(
            &[(variable, "ftp://host")],
            &[],
            &[variable, "ftp://host", good],
        );
    }
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"otlp-endpoint = \"host\"")
        .expect("written");
    let path = file.path().to_str().expect("a path");
    is_refused(&[], &["--config", path], &["otlp-endpoint", "host", good]);
}

#[test]
fn a_password_in_an_endpoint_is_refused_and_shown_nowhere() {
    let secret = "http://user:s3cret@localhost:4318/?key=s3cret";
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("otlp-endpoint = {secret:?}")).expect("written");
    let path = file.path().to_str().expect("a path");
    let by_variable = |name: &'static str| (vec![(name, secret)], vec![]);
    for (environment, flags) in [
        (vec![], vec!["--otlp-endpoint", secret]),
        (vec![], vec!["--config", path]),
        by_variable("SKALD_OTLP_ENDPOINT"),
        by_variable("OTEL_EXPORTER_OTLP_ENDPOINT"),
    ] {
        let mut command = skald(&[&["serve", "--listen", "127.0.0.1:0"], &flags[..]].concat());
        let output = command.envs(environment).output().expect("skald runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}

async fn one_request(environment: &[(&str, &str)], flags: &[&str]) -> Process {
    let environment = [&[AT_ONCE], environment].concat();
    let mut server = Process::start_in(&environment, flags);
    let body = json!({"inputs": "Once", "parameters": {"max_new_tokens": 1}});
    let request = post(&server, "the-one", "/generate", &body);
    assert_eq!(answer(request).await.0, 200);
    server.terminate();
    server.ended();
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standard_variables_are_honoured() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    one_request(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret"),
            ("OTEL_SERVICE_NAME", "tales"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=test,service.name=not this",
            ),
        ],
        &[],
    )
    .await;
    let (request, _) = collector.request("the-one");
    assert_eq!(request.resource["service.name"], "tales");
    assert_eq!(request.resource["deployment.environment.name"], "test");
    assert!(
        collector
            .heads()
            .iter()
            .all(|head| head["x-key"] == "secret")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_setting_wins() {
    let (ours, standard) = (Collector::start(), Collector::start());
    let traces = format!("{}/v1/traces", ours.endpoint());
    let elsewhere = standard.endpoint();
    one_request(
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &elsewhere)],
        &["--otlp-endpoint", &traces],
    )
    .await;
    ours.request("the-one");
    assert_eq!(standard.heads().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_follows_the_standard_variables() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let off = [
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            format!("{endpoint}/v1/traces"),
        ),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".to_owned()),
        ("OTEL_TRACES_SAMPLER_ARG", "0".to_owned()),
    ];
    let off = off.each_ref().map(|(name, value)| (*name, value.as_str()));
    let server = one_request(&off, &[]).await;
    assert_eq!(collector.spans().len(), 0);
    let lines = server.logged("generation finished");
    assert_ne!(lines[0]["span"]["trace_id"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standard_variables_switch_traces_off() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    for off in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ] {
        one_request(&[off], &["--otlp-endpoint", &endpoint]).await;
        assert_eq!(collector.heads().len(), 0, "{off:?}");
    }
}

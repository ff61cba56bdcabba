//! TLS to the database, as the URL requires.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::start::{is_unusable, refused};
use super::turn;
use crate::support::postgres::{Cluster, skipped};
use crate::support::process::Process;

/// Creates an authority, and a key with a certificate for 127.0.0.1.
fn certificates(directory: &Path) {
    let openssl = |arguments: &str| {
        let made = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory)
            .output();
        let made = made.expect("openssl runs");
        assert!(made.status.success(), "{made:?}");
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -subj /CN=authority -keyout ca.key -out ca.crt");
    openssl("req -newkey rsa:2048 -nodes -subj /CN=database -keyout server.key -out server.csr");
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1").expect("a file");
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names \
         -out server.crt",
    );
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(directory.join("server.key"), private).expect("it is ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_asked_for_where_the_url_says_so() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    if Command::new("openssl").arg("version").output().is_err() {
        skipped::<()>("openssl is not installed");
        return;
    }
    let url = cluster.create("tls").await;
    let data = cluster.data();
    certificates(&data);
    for file in ["server.key", "server.crt"] {
        cluster.give(&data.join(file));
    }
    let client = cluster.connect("tls").await;
    let on = "ALTER SYSTEM SET ssl = on";
    client.batch_execute(on).await.expect("it is set");
    cluster.restart();

    let root = data.join("ca.crt");
    let root = root.to_str().expect("a path");
    let full = format!("?sslmode=verify-full&sslrootcert={root}");
    for (query, encrypted) in [
        ("?sslmode=disable", false),
        ("", true),
        ("?sslmode=require", true),
        (full.as_str(), true),
    ] {
        let server = Process::with_store(&format!("{url}{query}"), &[]);
        let caller = server.caller();
        caller.post("/generate", turn("tale", " so", 2)).await.ok();
        let client = cluster.connect("postgres").await;
        let how = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                   WHERE application_name = 'skald'";
        let rows = client.query(how, &[]).await.expect("rows");
        let how: Vec<bool> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(how, [encrypted], "{query}");
        server.stop();
    }
    // An unknown issuer, then another host.
    is_unusable(&refused(&format!("{url}?sslmode=verify-full")), &["TLS"]);
    let elsewhere = url.replace("127.0.0.1", "localhost");
    is_unusable(&refused(&format!("{elsewhere}{full}")), &["TLS"]);
    let nothing = format!("{url}?sslmode=verify-full&sslrootcert=/nowhere.pem");
    is_unusable(&refused(&nothing), &["/nowhere.pem"]);
}

//! A network between a server and its database that can lose and delay data.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The part of a statement that identifies a commit.
const COMMIT: &[u8] = b"SET tokens = ";

/// A proxy that forwards everything, unless told otherwise.
pub struct Proxy {
    address: SocketAddr,
    network: Arc<Network>,
}

struct Network {
    database: String,
    /// Lose the answer to the next commit, and cut all connections if `cut_after` is set.
    lose_answer: AtomicBool,
    cut_after: AtomicBool,
    lost: AtomicUsize,
    /// Hold the next commit, and all that is sent after it, until [`Proxy::mend`].
    stall_commit: AtomicBool,
    is_stalled: watch::Sender<bool>,
    /// Forward nothing and refuse connections.
    is_cut: watch::Sender<bool>,
}

impl Proxy {
    /// Starts forwarding to a database at `host:port`.
    pub async fn start(database: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let network = Arc::new(Network {
            database: database.to_owned(),
            lose_answer: AtomicBool::new(false),
            cut_after: AtomicBool::new(false),
            lost: AtomicUsize::new(0),
            stall_commit: AtomicBool::new(false),
            is_stalled: watch::Sender::new(false),
            is_cut: watch::Sender::new(false),
        });
        let address = listener.local_addr().expect("an address");
        tokio::spawn({
            let network = Arc::clone(&network);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    // While cut, dropped at once.
                    if !*network.is_cut.borrow() {
                        tokio::spawn(pass_on(client, Arc::clone(&network)));
                    }
                }
            }
        });
        Self { address, network }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Loses the answer to the next commit, and its connection.
    pub fn lose_the_next_answer(&self) {
        self.network.lose_answer.store(true, Ordering::SeqCst);
    }

    /// Loses the answer to the next commit, and all connections until [`mend`](Self::mend).
    pub fn cut_at_the_next_answer(&self) {
        self.network.cut_after.store(true, Ordering::SeqCst);
        self.lose_the_next_answer();
    }

    /// Holds the next commit, and all that is sent after it, until [`mend`](Self::mend).
    pub fn stall_at_the_next_commit(&self) {
        self.network.stall_commit.store(true, Ordering::SeqCst);
    }

    /// Waits until a commit is held.
    pub async fn stalled(&self) {
        let mut stalled = self.network.is_stalled.subscribe();
        stalled
            .wait_for(|stalled| *stalled)
            .await
            .expect("it is there");
    }

    /// Forwards everything again.
    pub fn mend(&self) {
        self.network.cut_after.store(false, Ordering::SeqCst);
        self.network.is_cut.send_replace(false);
        self.network.is_stalled.send_replace(false);
    }

    /// Returns the number of lost answers.
    pub fn lost(&self) -> usize {
        self.network.lost.load(Ordering::SeqCst)
    }
}

async fn pass_on(mut client: TcpStream, network: Arc<Network>) {
    let Ok(mut database) = TcpStream::connect(&network.database).await else {
        return;
    };
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut cut = network.is_cut.subscribe();
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(n @ 1..) = read else { return };
                let is_commit = asked[..n].windows(COMMIT.len()).any(|part| part == COMMIT);
                if is_commit && network.stall_commit.swap(false, Ordering::SeqCst) {
                    network.is_stalled.send_replace(true);
                }
                let mut stalled = network.is_stalled.subscribe();
                let _ = stalled.wait_for(|stalled| !stalled).await.map(|_| ());
                if database.write_all(&asked[..n]).await.is_err() {
                    return;
                }
                if is_commit && network.lose_answer.swap(false, Ordering::SeqCst) {
                    // The commit took effect when the database answers.
                    let _ = database.read(&mut answered).await;
                    if network.cut_after.load(Ordering::SeqCst) {
                        network.is_cut.send_replace(true);
                    }
                    network.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
            read = database.read(&mut answered) => {
                let Ok(n @ 1..) = read else { return };
                if client.write_all(&answered[..n]).await.is_err() {
                    return;
                }
            }
            () = async { let _ = cut.wait_for(|cut| *cut).await; } => return,
        }
    }
}

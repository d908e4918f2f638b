//! SIGTERM and SIGINT: the first asks everybody to finish what is in hand, the second ends it.

use crate::db::Trouble;
use crate::store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// What the user asked for by signals.
#[derive(Debug, Clone)]
pub struct Signals {
    /// Cancelled by the first signal.
    pub stop: CancellationToken,
    /// Cancelled by the second.
    pub now: CancellationToken,
}

impl Signals {
    /// Begins to listen.
    pub fn listen() -> std::io::Result<Signals> {
        let signals = Signals { stop: CancellationToken::new(), now: CancellationToken::new() };
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let heard = signals.clone();
        tokio::spawn(async move {
            either(&mut terminate, &mut interrupt).await;
            warn!("finishing what is in hand; once more to end it");
            heard.stop.cancel();
            either(&mut terminate, &mut interrupt).await;
            heard.now.cancel();
        });
        Ok(signals)
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// Runs a single call, which a first signal asks the server to end and a second one abandons.
pub async fn interruptible<T>(
    signals: &Signals,
    store: &Store,
    call: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    let canceller = store.canceller();
    tokio::pin!(call);
    tokio::select! {
        done = &mut call => return done,
        () = signals.stop.cancelled() => canceller.cancel().await,
    }
    tokio::select! {
        done = &mut call => done,
        () = signals.now.cancelled() => Err(Trouble::Unexpected("abandoned by a signal; see migrator status".to_owned())),
    }
}

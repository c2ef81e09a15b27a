//! Connections that stay open and keep exchanging data, so that a test can say that
//! they were not touched: the same server answers, and every byte comes back.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Failure, LONG_PATIENCE, block_on};
use crate::netns::Netns;
use crate::process::{BOUND, wait_until};

/// One connection's story.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Who answered at the beginning; nothing if it never came that far.
    pub server: Option<String>,
    /// The client's address.
    pub local: Option<SocketAddr>,
    /// Messages that came back whole.
    pub exchanges: u64,
    /// What ended it before it was asked to end.
    pub failure: Option<Failure>,
}

/// Connections to the name-and-echo port, held open in the background.
pub struct Held {
    stop: watch::Sender<bool>,
    broken: Arc<AtomicUsize>,
    names: Vec<Option<String>>,
    thread: Option<JoinHandle<Vec<Kept>>>,
}

impl Held {
    /// Opens `count` connections one after the other and waits until each has either
    /// a server or a failure. Each then sends a message `every` so often and reads it
    /// back.
    pub fn open(ns: &Netns, target: SocketAddr, count: usize, every: Duration) -> Self {
        let (stop, stopped) = watch::channel(false);
        let broken = Arc::new(AtomicUsize::new(0));
        let (ready, opened) = std::sync::mpsc::channel();
        let counter = broken.clone();
        let thread = ns.spawn("held", move || {
            block_on(async {
                let mut tasks = JoinSet::new();
                let mut names = Vec::new();
                for number in 0..count {
                    let (opened, mut kept) = open(target).await;
                    names.push(kept.server.clone());
                    let (counter, stopped) = (counter.clone(), stopped.clone());
                    tasks.spawn(async move {
                        if let Some(stream) = opened
                            && let Err(failure) =
                                exchange(stream, number, every, stopped, &mut kept.exchanges).await
                        {
                            kept.failure = Some(failure);
                        }
                        if kept.failure.is_some() {
                            counter.fetch_add(1, Ordering::Relaxed);
                        }
                        (number, kept)
                    });
                }
                // The opener waits for this; it is not gone before.
                let _ = ready.send(names);
                let mut all: Vec<_> = tasks.join_all().await;
                all.sort_by_key(|(number, _)| *number);
                all.into_iter().map(|(_, kept)| kept).collect()
            })
        });
        let names = opened.recv().unwrap_or_default();
        Self {
            stop,
            broken,
            names,
            thread: Some(thread),
        }
    }

    /// How many connections each server got at the beginning.
    pub fn distribution(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for name in self.names.iter().flatten() {
            *counts.entry(name.clone()).or_default() += 1;
        }
        counts
    }

    /// How many have failed so far.
    pub fn broken(&self) -> usize {
        self.broken.load(Ordering::Relaxed)
    }

    /// Waits until `count` have failed.
    #[track_caller]
    pub fn wait_broken(&self, count: usize) {
        wait_until("held connections to break", BOUND, || {
            self.broken() >= count
        });
    }

    /// Lets each connection finish its exchange and one more, closes it, and returns
    /// the record in the order of opening.
    pub fn finish(mut self) -> Vec<Kept> {
        self.stop.send_replace(true);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(all)) => all,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Vec::new(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // Its panic would be the second one.
            let _ = thread.join();
        }
    }
}

async fn open(target: SocketAddr) -> (Option<BufReader<TcpStream>>, Kept) {
    let mut kept = Kept {
        server: None,
        local: None,
        exchanges: 0,
        failure: None,
    };
    let opening = async {
        let stream = TcpStream::connect(target).await?;
        kept.local = stream.local_addr().ok();
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        match line.strip_suffix('\n') {
            Some(name) => Ok((reader, name.to_owned())),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    };
    match timeout(LONG_PATIENCE, opening).await {
        Ok(Ok((reader, name))) => {
            kept.server = Some(name);
            (Some(reader), kept)
        }
        Ok(Err(error)) => {
            kept.failure = Some(error.into());
            (None, kept)
        }
        Err(_) => {
            kept.failure = Some(Failure::NotConnected);
            (None, kept)
        }
    }
}

async fn exchange(
    mut stream: BufReader<TcpStream>,
    number: usize,
    every: Duration,
    mut stopped: watch::Receiver<bool>,
    exchanges: &mut u64,
) -> Result<(), Failure> {
    loop {
        // Looked at before the exchange: the last one is after the order to stop.
        let last = *stopped.borrow();
        let message = format!("connection {number}, message {exchanges}\n");
        let back = async {
            stream.get_mut().write_all(message.as_bytes()).await?;
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            if line != message {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(())
        };
        let back = timeout(LONG_PATIENCE, back).await;
        back.map_err(|_| Failure::NotAnswered)??;
        *exchanges += 1;
        if last {
            break;
        }
        tokio::select! {
            () = sleep(every) => {}
            _ = stopped.changed() => {}
        }
    }
    let end = async {
        stream.get_mut().shutdown().await?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        match rest.is_empty() {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    };
    let end = timeout(LONG_PATIENCE, end).await;
    Ok(end.map_err(|_| Failure::NotAnswered)??)
}

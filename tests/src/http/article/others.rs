//! Others, who ask a service all the while something is done to it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::super::raw::Trouble;
use super::{Article, Service};
use crate::process::came_true;

/// How long they may wait for some answers on a busy machine.
const ANSWERED: Duration = Duration::from_secs(60);
/// Requests on a connection, before there is a fresh one.
const KEPT: usize = 5;

/// Those who ask. The first failure ends it.
#[derive(Debug, Default)]
pub struct Others {
    over: AtomicBool,
    failed: OnceLock<String>,
    asked: AtomicUsize,
    /// Responses that broke off after they had begun: nobody can repeat what the client has
    /// the beginning of. One is on its way when its Tomcat is killed, at most.
    cut: AtomicUsize,
}

impl Others {
    /// Waits until they have been answered so many times more.
    ///
    /// # Errors
    /// When one was not, or it takes too long.
    pub fn go_on(&self, more: usize) -> Result<(), String> {
        let from = self.asked.load(Ordering::Relaxed);
        let answered = || self.asked.load(Ordering::Relaxed) >= from + more;
        came_true(ANSWERED, || self.failed.get().is_some() || answered());
        match self.failed.get() {
            Some(why) => Err(why.clone()),
            None if answered() => Ok(()),
            None => Err(format!("no {more} answers to others within {ANSWERED:?}")),
        }
    }

    fn ask(&self, site: &Article, service: Service) -> Result<usize, String> {
        while !self.over.load(Ordering::Relaxed) {
            let mut client = site.client(service)?;
            for _ in 0..KEPT {
                match client.try_request("GET", "/x", &[], b"") {
                    Ok(answer) if answer.status == 200 => {}
                    Ok(answer) => return Err(format!("GET /x: {answer:?}")),
                    Err(Trouble::Cut(_)) if self.cut.fetch_add(1, Ordering::Relaxed) == 0 => break,
                    Err(trouble) => return Err(format!("GET /x: {trouble}")),
                }
                self.asked.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(self.asked.load(Ordering::Relaxed))
    }
}

impl Article {
    /// Does this while others, who have no session, ask a service one request after the
    /// other, on connections that some requests share. Also how many were answered, or how
    /// the one that was not has failed.
    pub fn among_others<R>(
        &self,
        service: Service,
        work: impl FnOnce(&Others) -> R,
    ) -> (R, Result<usize, String>) {
        let others = Others::default();
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let result = others.ask(self, service);
                if let Err(why) = &result {
                    // Nobody else sets it.
                    let _ = others.failed.set(why.clone());
                }
                result
            });
            let end = End(&others);
            let done = work(&others);
            drop(end);
            (done, asking.join().expect("it does not panic"))
        })
    }
}

/// Dropped, also by a panic, it ends the others: the scope waits for them.
struct End<'a>(&'a Others);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

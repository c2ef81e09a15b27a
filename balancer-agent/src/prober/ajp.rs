//! The AJP13 check: CPING, answered by CPONG.
//!
//! A container that is paused still takes connections, but answers nothing: that it
//! answers is what makes it ready.

use super::Wire;
use super::probe::{Phase, ProbeError, Progress};
use super::{http, tcp};
use crate::proxy::upstream::ajp::{CPING, CPONG};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Asks, and judges the answer.
pub(super) async fn check(
    address: SocketAddr,
    wire: &Wire,
    progress: &Progress,
) -> Result<(), ProbeError> {
    let mut stream = tcp::open(address, wire).await?;
    progress.reached(Phase::Responding);
    let cut = |error| http::broken(&error).unwrap_or(ProbeError::Closed);
    stream.write_all(&CPING).await.map_err(cut)?;
    let mut answer = [0; CPONG.len()];
    let mut got = 0;
    while got < answer.len() {
        let n = stream.read(&mut answer[got..]).await.map_err(cut)?;
        got += n;
        // Said as soon as it is known: a server of another protocol may say no more.
        if answer[..got] != CPONG[..got] {
            let bytes = answer[..got].escape_ascii();
            let what = format!("\"{bytes}\" in answer to CPING: not AJP13");
            return Err(ProbeError::Malformed(what));
        }
        if n == 0 {
            return Err(ProbeError::Closed);
        }
    }
    Ok(())
}

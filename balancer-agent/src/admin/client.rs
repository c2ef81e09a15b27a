//! Asks a running agent.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{ANSWER_MAX, Answer, Answered, Asked, Outcome, Refusal, Request, VERSION};

/// How long an agent may take to answer; a reload of a large file takes a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no agent answers on {path} ({source}): is `balancer run` running, with this socket?")]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Whoever listens can't be understood.
    #[error("the agent on {path} gave no answer: {source}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The agent refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Asks the agent that listens on a socket.
///
/// # Errors
/// See [`AskError`].
pub fn ask(socket: &Path, request: Request) -> Result<Answer, AskError> {
    let stream = UnixStream::connect(socket).map_err(|source| AskError::NoAgent {
        path: socket.into(),
        source,
    })?;
    let answered = exchange(stream, request).map_err(|source| AskError::Broken {
        path: socket.into(),
        source,
    })?;
    match answered.result {
        Outcome::Ok(answer) => Ok(answer),
        Outcome::Error(refusal) => Err(refusal.into()),
    }
}

fn exchange(mut stream: UnixStream, request: Request) -> io::Result<Answered> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&Asked::new(request))?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut text = Vec::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_until(b'\n', &mut text)?;
    if text.last() != Some(&b'\n') {
        let what = "it hung up, or said too much";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
    }
    serde_json::from_slice(&text).map_err(|error| {
        let what = format!("it does not speak version {VERSION} of the protocol ({error})");
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

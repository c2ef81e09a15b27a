//! The admin socket: who may listen on it, and who may speak.

use std::fs::{self, File, Permissions, TryLockError};
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::protocol::{Answer, Answered, Asked, Fault, REQUEST_MAX, Refusal, Request, VERSION};

/// Connections served at a time; others wait.
const CONNECTIONS: usize = 64;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// How long a client may take to say what it wants.
const READ_TIME: Duration = Duration::from_secs(10);
/// How long a client may take to read an answer.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Why the socket could not be had. All of them are the host's; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An agent answers there.
    #[error("another agent listens on {path}: stop it, or configure another `socket`")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something, and it is no socket.
    #[error("{path} is there and is not a socket: remove it, or configure another `socket`")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A file or system call.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

impl Listener {
    /// Listens at a path, for this user alone. A socket that nobody listens on any
    /// more is replaced. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Io {
            path: path.into(),
            source,
        };
        // Looking and replacing are two steps: without a lock two agents that start
        // together could both find the socket of a dead one.
        let lock = lock_file(path).map_err(failed)?;
        let Some(lock) = lock else {
            return Err(ListenError::InUse { path: path.into() });
        };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ListenError::NotASocket { path: path.into() });
            }
            Ok(_) if StdUnixStream::connect(path).is_ok() => {
                return Err(ListenError::InUse { path: path.into() });
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = listen(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.into(),
            _lock: lock,
        })
    }

    /// Serves clients until the future is dropped.
    pub async fn serve<H, F>(&self, handle: H)
    where
        H: Fn(Request) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Answer, Refusal>> + Send,
    {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let handle = handle.clone();
                    tokio::spawn(async move {
                        if let Err(error) = client(stream, handle).await {
                            tracing::debug!(%error, "admin client");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // No descriptors left, mostly: it must not spin.
                    tracing::warn!(%error, "admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket to which nobody else may connect from the first moment on: Linux gives its file
/// the mode that the socket had. A mask would hold for the files of all threads.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// Takes the lock beside a socket; `None` when another process has it. The file
/// stays: removing it would let two processes hold a lock each.
fn lock_file(socket: &Path) -> io::Result<Option<File>> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Answers one client's requests, one after the other, until it hangs up.
async fn client<H, F>(stream: UnixStream, handle: H) -> io::Result<()>
where
    H: Fn(Request) -> F,
    F: Future<Output = Result<Answer, Refusal>>,
{
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(REQUEST_MAX as u64 + 1);
        let reading = bounded.read_until(b'\n', &mut line);
        let Ok(count) = tokio::time::timeout(READ_TIME, reading).await else {
            return Ok(());
        };
        if count? == 0 {
            return Ok(());
        }
        let (result, last) = if line.len() > REQUEST_MAX {
            let message = format!("the request is longer than {REQUEST_MAX} bytes");
            (Err(Refusal::new(Fault::Request, message)), true)
        } else {
            match parse(&line) {
                Ok(request) => (handle(request).await, false),
                Err(refusal) => (Err(refusal), false),
            }
        };
        let mut text = serde_json::to_vec(&Answered::new(result))?;
        text.push(b'\n');
        match tokio::time::timeout(WRITE_TIME, write.write_all(&text)).await {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
        if last {
            return Ok(());
        }
    }
}

fn parse(line: &[u8]) -> Result<Request, Refusal> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let refuse = |message: String| Refusal::new(Fault::Request, message);
    let version: Version =
        serde_json::from_slice(line).map_err(|e| refuse(format!("not a request: {e}")))?;
    if version.version != VERSION {
        let asked = version.version;
        return Err(refuse(format!(
            "the agent speaks version {VERSION} of the protocol, the request has version {asked}"
        )));
    }
    let asked: Asked =
        serde_json::from_slice(line).map_err(|e| refuse(format!("not a request: {e}")))?;
    Ok(asked.request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    async fn refuse_all(_: Request) -> Result<Answer, Refusal> {
        Err(Refusal::new(Fault::Agent, "heard"))
    }

    async fn ask(path: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        text
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = Listener::bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::InUse { .. })
        ));
        drop(first);
        assert!(!path.exists());
        // One that knows nothing of the lock.
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::InUse { .. })
        ));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::NotASocket { .. })
        ));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn bad_requests_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let clients = async {
            let good = ask(&path, b"{\"version\":1,\"request\":\"status\"}\n").await;
            assert!(good.contains("heard"), "{good}");
            let twice = b"{\"version\":1,\"request\":\"status\"}\n".repeat(2);
            assert_eq!(ask(&path, &twice).await.lines().count(), 2);
            for (bytes, answer) in [
                (&b"hello\n"[..], "not a request"),
                (b"{\"version\":1,\"request\":\"dance\"}\n", "not a request"),
                (
                    b"{\"version\":2,\"request\":\"status\"}\n",
                    "version 1 of the protocol",
                ),
                (b"\xff\xfe\n", "not a request"),
            ] {
                let text = ask(&path, bytes).await;
                assert!(text.contains(answer), "{text}");
            }
            let long = ask(&path, &[b' '; REQUEST_MAX + 1]).await;
            assert!(long.contains("longer than"), "{long}");
        };
        tokio::select! {
            () = listener.serve(refuse_all) => unreachable!(),
            () = clients => {}
        }
    }
}

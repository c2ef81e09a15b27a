//! Draining, as operators see it: what is left, until nothing is.

use std::path::Path;
use std::time::{Duration, Instant};

use balancer_agent::admin::client::ask;
use balancer_agent::admin::protocol::{Answer, BackendStatus, Request};
use balancer_agent::admin::render;
use balancer_agent::model::Activation;

use super::{say, unexpected};

/// Sets a backend's activation and says what it means; its full name.
pub fn set(socket: &Path, backend: String, activation: Activation) -> anyhow::Result<String> {
    let asked = |request| match ask(socket, request)? {
        Answer::Backend { pool, backend } => Ok((pool, backend)),
        _ => Err(unexpected()),
    };
    // Flows that are cut go with their next packet: they are counted before.
    let before = match activation {
        Activation::Stopped => Some(asked(Request::Backend {
            backend: backend.clone(),
        })?),
        _ => None,
    };
    let request = Request::Activation {
        backend,
        activation,
    };
    let (pool, backend) = asked(request)?;
    let counted = before.map_or_else(|| flows(&backend), |(_, before)| flows(&before));
    let name = format!("{pool}/{}", backend.name);
    let more = match activation {
        Activation::Active => format!("health: {}", backend.health),
        Activation::Drain => format!("{counted} left{}", sessions_left(&backend)),
        Activation::Stopped => format!("{counted} cut"),
    };
    say(&format!("{name}: {activation}; {more}\n"))?;
    Ok(name)
}

/// What is known of a backend that drains.
///
/// # Errors
/// It was activated again, or can't be asked for.
fn not_activated(socket: &Path, name: &str) -> anyhow::Result<BackendStatus> {
    let request = Request::Backend {
        backend: name.to_owned(),
    };
    let Answer::Backend { backend, .. } = ask(socket, request)? else {
        return Err(unexpected());
    };
    if backend.activation == Activation::Active {
        anyhow::bail!("{name} was activated again");
    }
    Ok(*backend)
}

/// Shows the number of flows going down until none is left.
pub fn wait_drained(socket: &Path, name: &str, timeout: Option<Duration>) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(250);
    let began = Instant::now();
    let mut shown = None;
    loop {
        let backend = not_activated(socket, name)?;
        let left = flows(&backend);
        if shown.as_ref() != Some(&left) {
            say(&format!("{name}: {left} left\n"))?;
            shown = Some(left);
        }
        if in_use(&backend) == 0 {
            return Ok(());
        }
        if timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
            anyhow::bail!(
                "{name} still has {} after the time to wait",
                flows(&backend)
            );
        }
        std::thread::sleep(PAUSE);
    }
}

/// Shows the number of sessions going down until nothing is left, and stops the backend
/// when that takes too long.
pub fn end_sessions(socket: &Path, name: &str, deadline: Duration) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(250);
    let began = Instant::now();
    let mut shown = None;
    loop {
        let backend = not_activated(socket, name)?;
        let Some(left) = backend.sessions else {
            anyhow::bail!(
                "the sessions of {name} can't be counted: its pool's `sticky` names no `group`, or \
                 the session store has too much to do; it stays drained"
            );
        };
        let now = (left, backend.sessions_unheard.clone());
        if shown.as_ref() != Some(&now) {
            say(&format!(
                "{name}: {} left{}\n",
                flows(&backend),
                sessions_left(&backend)
            ))?;
            shown = Some(now);
        }
        // Those of a node that did not answer are not in the number.
        let all = backend.sessions_unheard.is_empty();
        if all && left == 0 && in_use(&backend) == 0 {
            return Ok(());
        }
        if began.elapsed() >= deadline {
            return set(socket, name.to_owned(), Activation::Stopped).map(drop);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Sessions, in words, where they are known.
fn sessions_left(backend: &BackendStatus) -> String {
    let known = match (backend.sessions, backend.last_session_ends_ms) {
        (Some(1), Some(last)) => format!(", and 1 session, which ends in {}", span(last)),
        (Some(n), Some(last)) if n > 1 => {
            format!(
                ", and {n} sessions, the last of which ends in {}",
                span(last)
            )
        }
        (Some(_), _) => ", and no session".into(),
        (None, _) => String::new(),
    };
    match render::unheard(&backend.sessions_unheard) {
        unheard if unheard.is_empty() => known,
        unheard => format!("{known} ({unheard})"),
    }
}

fn span(milliseconds: u64) -> String {
    let seconds = milliseconds.div_ceil(1_000);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds.div_ceil(60)),
        _ => format!("{}h", seconds.div_ceil(3_600)),
    }
}

/// Flows and requests, in words.
fn flows(backend: &BackendStatus) -> String {
    let text = match backend.flows + backend.half_open {
        1 => "1 flow".into(),
        n => format!("{n} flows"),
    };
    match backend.requests_in_flight {
        0 => text,
        1 => format!("{text} and 1 request"),
        n => format!("{text} and {n} requests"),
    }
}

fn in_use(backend: &BackendStatus) -> u64 {
    u64::from(backend.flows + backend.half_open) + backend.requests_in_flight
}

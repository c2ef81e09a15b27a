//! The reconcile loop: one thread that owns what is wanted and writes the tables.
//!
//! Everything that changes what is wanted comes to it as an [`Input`]: verdicts, next
//! hops, configurations, words of operators. It is level triggered and coalescing: all
//! inputs that have come are noted first, each that takes a backend out by one store at
//! once, and then one round brings the tables to what is wanted. A round also happens
//! when the last one asked for it and on the resync tick.
//!
//! - `worker.rs`: the thread;
//! - `view.rs`: what is known beside the configuration;
//! - `overrides.rs`: the words of operators, on disk;
//! - `flowkeeper.rs`: the other thread, which looks through the flow tables.

pub mod flowkeeper;
pub mod overrides;
pub mod view;
mod worker;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use common::tables::Event;
use tokio::sync::oneshot;

use crate::dataplane::flows::Unanswered;
use crate::model::{Activation, BackendName, Config, Protocol};
use crate::nexthop::NextHops;
use crate::prober::Verdict;
use crate::reconcile::{LingeringSlot, ReconcileError};
use overrides::Overrides;

pub use worker::{RESYNC, Setup, Worker};

/// What the worker is told.
#[derive(Debug)]
pub enum Input {
    /// Backends have gone up or down.
    Verdicts(Vec<Verdict>),
    /// Links, neighbours or routes have changed.
    Hops(Arc<NextHops>),
    /// The interfaces that the program is attached to, by index.
    Attached(Vec<u32>),
    /// Another configuration; answered once the tables follow it.
    Config(Arc<Config>, oneshot::Sender<Result<(), SteeringError>>),
    /// An operator's word on a backend; answered once the tables follow it.
    Activation(
        BackendName,
        Activation,
        oneshot::Sender<Result<(), SteeringError>>,
    ),
    /// Signs from the kernel program.
    Events(Vec<Event>),
    /// Signs from the half-open table.
    Unanswered(Vec<Unanswered>),
    /// How things stand.
    Look(oneshot::Sender<Look>),
    /// The end.
    Stop,
}

/// How things stand with the worker.
#[derive(Clone, Debug)]
pub struct Look {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// Words of operators.
    pub overrides: Overrides,
    /// Whether a first round is done.
    pub ready: bool,
    /// Counts the states that were wanted.
    pub desired: u64,
    /// The newest of them that the tables have.
    pub applied: u64,
    /// What kept the last round from doing everything.
    pub last_error: Option<ReconcileError>,
    /// Backend slots and whose they are.
    pub backends: Vec<(u16, BackendName, Protocol)>,
    /// Frontend slots and whose they are.
    pub frontends: Vec<(u16, Arc<str>)>,
    /// What was removed from the configuration.
    pub lingering: Vec<LingeringSlot>,
    /// The clock of [`LingeringSlot::since`] at this moment.
    pub now: Duration,
}

/// Why something wanted is not in the tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SteeringError {
    /// The backend is not in the configuration. The caller's fault.
    #[error("no backend {0}")]
    NoBackend(BackendName),
    /// The tables do not have room for everything; the rest is done, and the agent
    /// goes on trying. The configuration's fault.
    #[error("not all of it is in the kernel: {0}")]
    Incomplete(#[from] ReconcileError),
    /// The worker has ended. Ours.
    #[error("the agent is ending")]
    Ended,
}

/// Speaks to the worker; cheap to clone.
#[derive(Clone, Debug)]
pub struct SteeringHandle(mpsc::Sender<Input>);

impl SteeringHandle {
    /// A handle, and what the worker reads.
    pub fn new() -> (Self, mpsc::Receiver<Input>) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), receiver)
    }

    /// Tells the worker something.
    ///
    /// # Errors
    /// [`SteeringError::Ended`]
    pub fn tell(&self, input: Input) -> Result<(), SteeringError> {
        self.0.send(input).map_err(|_| SteeringError::Ended)
    }

    /// Has the worker take a configuration; the future waits until the tables follow
    /// it. The worker is told at once: before anything that is told after this call.
    ///
    /// # Errors
    /// [`SteeringError::Incomplete`], [`SteeringError::Ended`]
    pub fn set_config(
        &self,
        config: Arc<Config>,
    ) -> impl Future<Output = Result<(), SteeringError>> + use<> {
        let (reply, answer) = oneshot::channel();
        let told = self.tell(Input::Config(config, reply));
        async move {
            told?;
            answer.await.unwrap_or(Err(SteeringError::Ended))
        }
    }

    /// Has the worker change a backend's activation, and waits until the tables
    /// follow it.
    ///
    /// # Errors
    /// See [`SteeringError`].
    pub async fn set_activation(
        &self,
        backend: BackendName,
        activation: Activation,
    ) -> Result<(), SteeringError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Activation(backend, activation, reply))?;
        answer.await.unwrap_or(Err(SteeringError::Ended))
    }

    /// How things stand.
    ///
    /// # Errors
    /// [`SteeringError::Ended`]
    pub async fn look(&self) -> Result<Look, SteeringError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Look(reply))?;
        answer.await.map_err(|_| SteeringError::Ended)
    }
}

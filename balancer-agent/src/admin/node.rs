//! Answers the operators' requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::protocol::{
    Answer, BackendStatus, Fault, FlowFilter, FlowList, FlowStatus, Refusal, Request,
};
use super::{sessions, status};
use crate::cluster::Cluster;
use crate::dataplane::flows::{self, FlowCounts, FlowState};
use crate::dataplane::kernel::Kernel;
use crate::model::{Activation, BackendName, Config};
use crate::nexthop::NextHops;
use crate::prober::ProberHandle;
use crate::proxy::stats::{Views, Web};
use crate::session::handle::Sessions;
use crate::steering::flowkeeper::monotonic;
use crate::steering::{Look, SteeringError, SteeringHandle};

/// How long a count of all flows serves everybody who asks for the status.
const COUNTS_AGE: Duration = Duration::from_millis(100);
/// Most flows in one answer.
const FLOWS_MAX: u32 = 1_000_000;

/// Somebody wants the configuration read again; the answer has the file's warnings.
pub type ReloadRequest = oneshot::Sender<Result<String, Refusal>>;

/// What the answers are made of.
pub struct Node {
    /// The reconcile loop.
    pub steering: SteeringHandle,
    /// The checks.
    pub prober: ProberHandle,
    /// `None` when nothing is steered.
    pub kernel: Option<Arc<Kernel>>,
    /// The next hops.
    pub hops: watch::Receiver<Arc<NextHops>>,
    /// Who reads the configuration.
    pub reload: mpsc::Sender<ReloadRequest>,
    /// The web tier; `None` in an agent without it.
    pub web: Option<Arc<dyn Web>>,
    /// The cluster; `None` for a node of its own.
    pub cluster: Option<Cluster>,
    /// The session store; `None` in a node without groups.
    pub sessions: Option<Sessions>,
    /// When the agent started.
    pub started: Instant,
    /// The last count of all flows.
    pub counts: CachedCounts,
}

/// A count of all flows, and when it began.
#[derive(Default)]
pub struct CachedCounts(Mutex<Option<(Instant, Arc<FlowCounts>)>>);

impl CachedCounts {
    /// Counts, or takes the last count when it was begun at `since` or later. Those
    /// who come while it is being made wait for it.
    fn take(&self, kernel: &Kernel, config: &Config, since: Instant) -> Arc<FlowCounts> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((began, counts)) = &*cached
            && *began >= since
        {
            return Arc::clone(counts);
        }
        let began = Instant::now();
        let tables = kernel.tables();
        let counts = flows::count_by_backend(tables, &config.timeouts, monotonic());
        let counts = Arc::new(counts);
        *cached = Some((began, Arc::clone(&counts)));
        counts
    }
}

impl Node {
    /// Answers one request.
    ///
    /// # Errors
    /// What to tell the operator.
    pub async fn answer(self: Arc<Self>, request: Request) -> Result<Answer, Refusal> {
        match request {
            Request::Status => {
                let look = self.look().await?;
                let node = Arc::clone(&self);
                let now = Instant::now();
                let since = now.checked_sub(COUNTS_AGE).unwrap_or(now);
                let mut status = blocking(move || status::status(&node, &look, since)).await?;
                if let Some(sessions) = &self.sessions {
                    status.sessions = sessions::status(sessions).await.map(Box::new);
                }
                Ok(Answer::Status(Box::new(status)))
            }
            Request::View { format, query } => {
                let view = Views::view(self, format, query).await;
                match view.status {
                    200 => Ok(Answer::View(view)),
                    _ => Err(Refusal::new(Fault::Request, view.text.trim_end())),
                }
            }
            Request::Backend { backend } => self.backend(&backend).await,
            Request::Activation {
                backend,
                activation,
            } => self.activation(&backend, activation).await,
            Request::Flows(filter) => {
                let look = self.look().await?;
                let node = Arc::clone(&self);
                blocking(move || node.flows(&look, &filter))
                    .await?
                    .map(Answer::Flows)
            }
            Request::Reload => {
                let (reply, answer) = oneshot::channel();
                let ending = || Refusal::new(Fault::Agent, SteeringError::Ended.to_string());
                self.reload.send(reply).await.map_err(|_| ending())?;
                let warnings = answer.await.map_err(|_| ending())??;
                Ok(Answer::Reloaded { warnings })
            }
            Request::Sessions(filter) => {
                let (sessions, names) = self.session_store()?;
                let list = sessions::list(sessions, names, filter).await?;
                Ok(Answer::Sessions(list))
            }
            Request::SessionCounts { group } => {
                let (sessions, names) = self.session_store()?;
                let counts = sessions::counts(sessions, names, group.as_deref()).await?;
                Ok(Answer::SessionCounts(counts))
            }
            Request::Session(name) => {
                let (sessions, names) = self.session_store()?;
                let found = sessions::show(sessions, names, name).await?;
                Ok(Answer::Session(Box::new(found)))
            }
            Request::ExpireSession(name) => {
                let (sessions, names) = self.session_store()?;
                let (group, id) = sessions::expire(sessions, names, name).await?;
                Ok(Answer::SessionEnded { group, id })
            }
            Request::ReopenLogs => {
                let Some(web) = self.web.clone() else {
                    let why = "this agent has no HTTP frontends, so no access logs";
                    return Err(Refusal::new(Fault::Request, why));
                };
                let files = blocking(move || web.reopen_logs()).await?;
                Ok(Answer::LogsReopened { files })
            }
        }
    }

    /// What views are made of: the status, and the configuration that it is of.
    pub(super) async fn whole(
        self: Arc<Self>,
    ) -> Result<(super::protocol::Status, Arc<Config>), Refusal> {
        let look = self.look().await?;
        let config = Arc::clone(&look.config);
        let now = Instant::now();
        let since = now.checked_sub(COUNTS_AGE).unwrap_or(now);
        let status = blocking(move || status::status(&self, &look, since)).await?;
        Ok((status, config))
    }

    async fn activation(
        self: Arc<Self>,
        backend: &str,
        activation: Activation,
    ) -> Result<Answer, Refusal> {
        let name = resolve(&self.look().await?.config, backend)?;
        let done = self.steering.set_activation(name.clone(), activation).await;
        if let (Ok(()) | Err(SteeringError::Incomplete(_)), Some(web)) = (&done, &self.web) {
            web.activation(&name, activation);
        }
        match done {
            // What is missing is somewhere else: this backend's state needs no room.
            Ok(()) | Err(SteeringError::Incomplete(_)) => self.backend_of(name).await,
            Err(error @ SteeringError::NoBackend(_)) => {
                Err(Refusal::new(Fault::Request, error.to_string()))
            }
            Err(error) => Err(Refusal::new(Fault::Agent, error.to_string())),
        }
    }

    async fn backend(self: Arc<Self>, backend: &str) -> Result<Answer, Refusal> {
        let name = resolve(&self.look().await?.config, backend)?;
        self.backend_of(name).await
    }

    async fn backend_of(self: Arc<Self>, name: BackendName) -> Result<Answer, Refusal> {
        // An operator who acts on the number must not be told an old one.
        let since = Instant::now();
        let look = self.look().await?;
        let pool = name.pool.to_string();
        let node = Arc::clone(&self);
        let sessions = match (self.session_store(), look.config.pool(&name.pool)) {
            (Ok((sessions, names)), Some(pool)) => {
                sessions::at_backend(sessions, names, pool, &name.backend).await
            }
            _ => None,
        };
        let backend: Option<BackendStatus> =
            blocking(move || status::backend(&node, &look, &name, since)).await?;
        match backend {
            Some(mut backend) => {
                if let Some(sessions) = sessions {
                    backend.sessions = Some(sessions.count);
                    backend.last_session_ends_ms = Some(sessions.last_ends_ms.unwrap_or(0));
                    backend.sessions_unheard = sessions.unheard;
                }
                Ok(Answer::Backend {
                    pool,
                    backend: Box::new(backend),
                })
            }
            None => Err(Refusal::new(
                Fault::Request,
                "the backend was just removed from the configuration",
            )),
        }
    }

    fn session_store(&self) -> Result<(&Sessions, sessions::Names<'_>), Refusal> {
        let Some(sessions) = &self.sessions else {
            let why = "this agent keeps no sessions: its configuration has no `[[session.group]]`";
            return Err(Refusal::new(Fault::Request, why));
        };
        let names = sessions::Names {
            web: self.web.as_deref(),
            cluster: self.cluster.as_ref(),
        };
        Ok((sessions, names))
    }

    async fn look(&self) -> Result<Look, Refusal> {
        let look = self.steering.look().await;
        look.map_err(|e| Refusal::new(Fault::Agent, e.to_string()))
    }

    /// All flows, counted after `since`.
    pub(super) fn counts(&self, config: &Config, since: Instant) -> Arc<FlowCounts> {
        match &self.kernel {
            Some(kernel) => self.counts.take(kernel, config, since),
            None => Arc::default(),
        }
    }

    fn flows(&self, look: &Look, filter: &FlowFilter) -> Result<FlowList, Refusal> {
        let wanted = filter
            .backend
            .as_deref()
            .map(|backend| resolve(&look.config, backend))
            .transpose()?;
        if let Some(frontend) = &filter.frontend
            && !look.frontends.iter().any(|(_, name)| **name == **frontend)
        {
            return Err(no_frontend(look, frontend));
        }
        let Some(kernel) = &self.kernel else {
            return Ok(FlowList::default());
        };
        let backends: HashMap<u16, &BackendName> =
            look.backends.iter().map(|(s, n, _)| (*s, n)).collect();
        let frontends: HashMap<u16, &Arc<str>> =
            look.frontends.iter().map(|(s, n)| (*s, n)).collect();
        let generations = status::generations(kernel.tables());
        let timeouts = &look.config.timeouts;
        let limit = filter.limit.min(FLOWS_MAX) as usize;
        let mut list = FlowList::default();
        flows::for_each(kernel.tables(), monotonic(), |flow| {
            let backend = backends.get(&flow.backend).copied();
            let frontend = frontends.get(&flow.frontend).copied();
            let stale = generations.get(usize::from(flow.backend)) != Some(&Some(flow.generation));
            let other = |wanted: Option<bool>| wanted == Some(false);
            if flow.state == FlowState::Closed
                || stale
                || status::timed_out(&flow, timeouts)
                || other(wanted.as_ref().map(|w| backend == Some(w)))
                || other(
                    filter
                        .frontend
                        .as_deref()
                        .map(|f| frontend.is_some_and(|n| **n == *f)),
                )
                || other(filter.client.map(|ip| flow.client.ip() == ip))
            {
                return;
            }
            list.total += 1;
            if list.flows.len() < limit {
                list.flows.push(FlowStatus {
                    protocol: flow.protocol.to_string(),
                    client: flow.client,
                    frontend: frontend.map(ToString::to_string),
                    backend: backend.map(ToString::to_string),
                    state: flow.state.to_string(),
                    idle_ms: flow.idle.as_millis() as u64,
                    snat_port: flow.snat.map(|(_, port)| port),
                });
            }
        });
        Ok(list)
    }
}

/// Work that takes longer than others on the runtime should wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Refusal::new(Fault::Agent, format!("the agent failed to answer: {e}")))
}

/// The backend that an operator means.
fn resolve(config: &Config, said: &str) -> Result<BackendName, Refusal> {
    let names = config.pools.iter().flat_map(|pool| {
        let backends = pool.backends.iter();
        backends.map(|backend| (&pool.name, &backend.name))
    });
    let meant: Vec<BackendName> = match said.split_once('/') {
        Some((pool, backend)) => names
            .filter(|(p, b)| ***p == *pool && ***b == *backend)
            .map(name)
            .collect(),
        None => names.filter(|(_, b)| ***b == *said).map(name).collect(),
    };
    match &meant[..] {
        [one] => Ok(one.clone()),
        [] => Err(Refusal::new(
            Fault::Request,
            format!("no backend {said}{}", candidates(config, said)),
        )),
        several => Err(Refusal::new(
            Fault::Request,
            format!(
                "{said} is in several pools: say which of {}",
                list(several.iter().map(ToString::to_string))
            ),
        )),
    }
}

fn name((pool, backend): (&Arc<str>, &Arc<str>)) -> BackendName {
    BackendName {
        pool: Arc::clone(pool),
        backend: Arc::clone(backend),
    }
}

/// What could have been meant instead.
fn candidates(config: &Config, said: &str) -> String {
    let (pool, backend) = said.split_once('/').unwrap_or(("", said));
    let of = |wanted: &dyn Fn(&str, &str) -> bool| -> Vec<String> {
        let pools = config.pools.iter();
        pools
            .flat_map(|p| p.backends.iter().map(move |b| (p, b)))
            .filter(|(p, b)| wanted(&p.name, &b.name))
            .map(|(p, b)| format!("{}/{}", p.name, b.name))
            .collect()
    };
    let mut found = of(&|p, _| p == pool);
    if found.is_empty() {
        found = of(&|_, b| b == backend);
    }
    if found.is_empty() {
        found = of(&|_, _| true);
    }
    match found.is_empty() {
        true => "; the configuration has none".into(),
        false => format!("; there is {}", list(found.into_iter())),
    }
}

fn no_frontend(look: &Look, said: &str) -> Refusal {
    let names = look.config.frontends.iter().map(|f| f.name.to_string());
    let message = format!("no frontend {said}; there is {}", list(names));
    Refusal::new(Fault::Request, message)
}

/// The first of them in a sentence.
fn list(names: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 10;
    let names: Vec<String> = names.collect();
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = r#"
            [[pool]]
            name = "web"
            [[pool.backend]]
            name = "s1"
            address = "10.0.0.1:80"
            [[pool.backend]]
            name = "s2"
            address = "10.0.0.2:80"
            [[pool]]
            name = "api"
            [[pool.backend]]
            name = "s1"
            address = "10.0.0.1:81"
        "#;
        crate::config::parse("test", text).unwrap()
    }

    #[test]
    fn a_backend_is_found_by_either_name() {
        let config = config();
        let ok = |said| resolve(&config, said).unwrap().to_string();
        assert_eq!(ok("web/s1"), "web/s1");
        assert_eq!(ok("s2"), "web/s2");
    }

    #[test]
    fn a_wrong_name_is_told_with_candidates() {
        let config = config();
        let refused = |said| resolve(&config, said).unwrap_err().message;
        let several = refused("s1");
        assert!(several.contains("web/s1, api/s1"), "{several}");
        let in_pool = refused("web/s3");
        assert!(in_pool.ends_with("there is web/s1, web/s2"), "{in_pool}");
        let in_other = refused("ap/s1");
        assert!(in_other.ends_with("there is web/s1, api/s1"), "{in_other}");
        let nothing = refused("x");
        assert!(nothing.contains("web/s1, web/s2, api/s1"), "{nothing}");
    }
}

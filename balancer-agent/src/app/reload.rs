//! A changed configuration: read, checked against what a running agent can follow, and
//! applied whole or not at all.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::ready::Ready;
use super::{servers, steers, tell_attached};
use crate::admin::node::ReloadRequest;
use crate::admin::protocol::{Fault, Refusal};
use crate::admin::render::headed;
use crate::cluster::{self, Cluster};
use crate::dataplane::kernel::Kernel;
use crate::model::Config;
use crate::prober::ProberHandle;
use crate::proxy::materials::Materials;
use crate::proxy::server::{Prepared, Proxy};
use crate::steering::{SteeringError, SteeringHandle};

/// SIGHUP.
pub(super) async fn by_signal(reload: mpsc::Sender<ReloadRequest>) {
    let (reply, answer) = oneshot::channel();
    // The answer is logged where it is made.
    if reload.send(reply).await.is_ok() {
        let _ = answer.await;
    }
}

/// Reads the configuration file again, one time after the other.
pub(super) struct Reloader {
    /// The file.
    pub path: PathBuf,
    pub kernel: Option<Arc<Kernel>>,
    pub steering: SteeringHandle,
    pub prober: ProberHandle,
    pub proxy: Proxy,
    pub cluster: Option<Cluster>,
    pub destinations: watch::Sender<Vec<IpAddr>>,
    pub current: Arc<Config>,
}

impl Reloader {
    /// Until nobody is left who could ask.
    pub async fn run(mut self, mut requests: mpsc::Receiver<ReloadRequest>) {
        while let Some(request) = requests.recv().await {
            let result = self.reload().await;
            match &result {
                Ok(warnings) if warnings.is_empty() => tracing::info!("configuration reloaded"),
                Ok(warnings) => {
                    tracing::warn!("configuration reloaded, with warnings:\n{warnings}")
                }
                Err(refusal) => tracing::error!(
                    "{}",
                    headed("configuration not reloaded", &refusal.to_string())
                ),
            }
            let _ = request.send(result);
        }
    }

    async fn reload(&mut self) -> Result<String, Refusal> {
        let (path, proxy) = (self.path.clone(), self.proxy.clone());
        let reading = tokio::task::spawn_blocking(move || Ready::read(&path, Some(&proxy)));
        let ready = reading
            .await
            .map_err(|e| Refusal::new(Fault::Agent, e.to_string()))?
            .map_err(|e| Refusal::new(Fault::Config, e.report(false)))?;
        let targets = ready.targets();
        let (config, warnings) = (ready.config, ready.warnings);
        self.check(&config)?;
        let web = self.prepare(&config, ready.materials).await?;
        self.set_interfaces(&config).await?;
        // From here on nothing is refused any more.
        self.destinations.send_replace(servers(&config));
        self.current = Arc::clone(&config);
        self.proxy.apply(web);
        if let (Some(cluster), Some(config)) = (&self.cluster, &config.cluster) {
            cluster.configure(Arc::clone(config)).await;
        }
        // The worker first: it must know a backend before there is a verdict on it.
        let following = self.steering.set_config(Arc::clone(&config));
        self.prober.configure(targets);
        following.await.map_err(|error| match error {
            SteeringError::Incomplete(_) => Refusal::new(Fault::Kernel, error.to_string()),
            _ => Refusal::new(Fault::Agent, error.to_string()),
        })?;
        Ok(match warnings.is_empty() {
            true => String::new(),
            false => warnings.report(false),
        })
    }

    /// Refuses what a running agent cannot follow.
    fn check(&self, new: &Config) -> Result<(), Refusal> {
        let old = &self.current;
        let mut differ = Vec::new();
        let mut compare = |name: &str, same: bool| {
            if !same {
                differ.push(name.to_owned());
            }
        };
        compare("[admin] socket", old.admin == new.admin);
        compare("[xdp] pin_dir", old.xdp.pin_dir == new.xdp.pin_dir);
        let sizes = |c: &Config| (c.xdp.flows_ipv4, c.xdp.flows_ipv6, c.xdp.half_open);
        let resized = sizes(old) != sizes(new);
        compare("[xdp] flows_ipv4, flows_ipv6, half_open", !resized);
        compare("[http] threads", old.http.threads == new.http.threads);
        compare(
            "[xdp] interfaces (nothing is steered yet)",
            self.kernel.is_some() || !steers(new),
        );
        compare("[session]", old.sessions == new.sessions);
        let of_cluster = cluster::differences(old.cluster.as_deref(), new.cluster.as_deref());
        differ.extend(of_cluster.into_iter().map(str::to_owned));
        if differ.is_empty() {
            return Ok(());
        }
        let mut message = format!(
            "nothing of the file was applied: a running agent can't change {}; restart the agent",
            differ.join(", ")
        );
        if resized {
            message += ", with `balancer unload` in between, which forgets all flows";
        }
        Err(Refusal::new(Fault::Config, message))
    }

    /// Binds what is new; changes nothing.
    async fn prepare(&self, new: &Arc<Config>, with: Materials) -> Result<Prepared, Refusal> {
        let (proxy, new) = (self.proxy.clone(), Arc::clone(new));
        tokio::task::spawn_blocking(move || Proxy::prepare(&new, with, Some(&proxy)))
            .await
            .map_err(|e| Refusal::new(Fault::Agent, e.to_string()))?
            .map_err(|e| Refusal::new(Fault::Config, format!("nothing was applied: {e}")))
    }

    async fn set_interfaces(&self, new: &Config) -> Result<(), Refusal> {
        let Some(kernel) = &self.kernel else {
            return Ok(());
        };
        let old = &self.current.xdp;
        if (&old.interfaces, old.mode) == (&new.xdp.interfaces, new.xdp.mode) {
            return Ok(());
        }
        let (interfaces, mode) = (new.xdp.interfaces.clone(), new.xdp.mode);
        let on = Arc::clone(kernel);
        tokio::task::spawn_blocking(move || on.set_interfaces(&interfaces, mode))
            .await
            .map_err(|e| Refusal::new(Fault::Agent, e.to_string()))?
            .map_err(|e| Refusal::new(Fault::Config, format!("nothing was applied: {e}")))?;
        tell_attached(kernel, &self.steering).map_err(|e| Refusal::new(Fault::Agent, e.to_string()))
    }
}

//! Files to import, and what came of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use balancer_agent::config;
use balancer_agent::import::{self, ImportError, Imported, Options};
use balancer_agent::model::http::{Action, HttpFrontend, Route, Site};
use balancer_agent::model::{Config, Pool};
use tempfile::TempDir;

/// Files of a test, by their names.
pub struct Files(pub TempDir);

impl Files {
    pub fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A result with the folder's name taken out of it.
pub struct Made {
    pub toml: String,
    pub left: Vec<String>,
    pub notes: Vec<String>,
    pub config: Config,
}

impl Made {
    /// Of a result; `folder` is not mentioned.
    pub fn new(imported: Imported, folder: &Path) -> Self {
        let folder = format!("{}/", folder.display());
        let shown = |list: &[import::LeftOver]| -> Vec<String> {
            list.iter()
                .map(|entry| entry.to_string().replace(&folder, ""))
                .collect()
        };
        Self {
            config: load(&imported.toml),
            left: shown(&imported.left_over),
            notes: shown(&imported.notes),
            toml: imported.toml.replace(&folder, ""),
        }
    }

    pub fn frontend(&self, name: &str) -> &Arc<HttpFrontend> {
        let found = self.config.http.frontends.iter().find(|f| &*f.name == name);
        found.unwrap_or_else(|| panic!("no frontend {name} in\n{}", self.toml))
    }

    pub fn pool(&self, name: &str) -> &Arc<Pool> {
        self.config
            .pool(name)
            .unwrap_or_else(|| panic!("no pool {name} in\n{}", self.toml))
    }

    /// Whether something is left over at that place, for a reason with this text.
    #[track_caller]
    pub fn is_left(&self, place: &str, text: &str) {
        let found = self
            .left
            .iter()
            .any(|line| line.starts_with(&format!("{place}: ")) && line.contains(text));
        assert!(
            found,
            "nothing at {place} with {text:?} in\n{}",
            self.left.join("\n")
        );
    }
}

/// The sites of a frontend in short: `hosts: pattern -> action, ..., !pattern (pool); else`.
pub fn sites(frontend: &HttpFrontend) -> Vec<String> {
    frontend.sites.iter().map(|site| shown(site)).collect()
}

fn shown(site: &Site) -> String {
    use balancer_agent::model::http::HostPattern;
    let hosts: Vec<String> = site
        .hosts
        .iter()
        .map(|host| match host {
            HostPattern::Exact(name) => name.to_string(),
            HostPattern::Suffix(name) => format!("*{name}"),
        })
        .collect();
    let mut out = format!(
        "{}:",
        if hosts.is_empty() {
            "any".into()
        } else {
            hosts.join(" ")
        }
    );
    for mount in &site.mounts {
        out += &format!(" {} -> {},", mount.pattern, action(&mount.route));
    }
    for exclusion in &site.exclusions {
        out += &format!(
            " !{} ({}),",
            exclusion.pattern,
            exclusion.pool.as_deref().unwrap_or("*")
        );
    }
    match &site.fallback {
        Some(route) => out + &format!(" else {}", action(route)),
        None => out.trim_end_matches(',').to_owned(),
    }
}

fn action(route: &Route) -> String {
    let mut out = match &route.action {
        Action::Pool(pool) => pool.to_string(),
        Action::Files(files) => format!("files {}", files.root.display()),
        Action::Redirect { status, location } => format!("{} {location}", status.as_u16()),
        Action::Respond { status, .. } => status.as_str().to_owned(),
        Action::Stats(stats) => format!("{:?}", stats.format),
    };
    if let Some(prefix) = &route.rewrite.strip_prefix {
        out += &format!(" -{prefix}");
    }
    if let Some(prefix) = &route.rewrite.add_prefix {
        out += &format!(" +{prefix}");
    }
    if let Some(host) = &route.rewrite.host {
        out += &format!(" host={}", host.to_str().unwrap());
    }
    out
}

/// Loads a configuration, with files that are there in place of those that it names.
#[track_caller]
pub fn load(toml: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    let mut count = 0;
    for line in toml.lines() {
        let named = [
            "certificate",
            "key",
            "key_file",
            "authorities",
            "client_authorities",
        ];
        let key = line.split(" = ").next().unwrap_or_default();
        if named.contains(&key) && line.contains("= \"/") {
            count += 1;
            let path = dir.path().join(count.to_string());
            fs::write(&path, [b'k'; 40]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            text += &format!("{key} = {:?}\n", path.display().to_string());
        } else {
            text += line;
            text += "\n";
        }
    }
    config::parse("imported", &text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

pub fn haproxy(text: &str) -> Result<Made, ImportError> {
    haproxy_with(text, &Options::default())
}

pub fn haproxy_with(text: &str, options: &Options) -> Result<Made, ImportError> {
    let files = Files::new(&[("h.cfg", text)]);
    let imported = import::haproxy(&files.path("h.cfg"), options)?;
    Ok(Made::new(imported, files.0.path()))
}

pub fn nginx(files: &[(&str, &str)]) -> Result<Made, ImportError> {
    let files = Files::new(files);
    let imported = import::nginx(&files.path("nginx.conf"), &Options::default())?;
    Ok(Made::new(imported, files.0.path()))
}

/// `w.properties`, and `httpd.conf` and `map` when they are there.
pub fn workers(files: &[(&str, &str)]) -> Result<Made, ImportError> {
    let has = |name: &str| files.iter().any(|(n, _)| *n == name);
    let (conf, map) = (has("httpd.conf"), has("map"));
    let files = Files::new(files);
    let (httpd, rules) = (files.path("httpd.conf"), files.path("map"));
    let imported = import::workers(
        &files.path("w.properties"),
        map.then_some(rules.as_path()),
        conf.then_some(httpd.as_path()),
        &Options::default(),
    )?;
    Ok(Made::new(imported, files.0.path()))
}

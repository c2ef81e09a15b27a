//! One configuration of all files: includes followed, conditions decided, directives by the
//! server that they belong to.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::lex::{self, Node};
use crate::import::source::{DEPTH_MAX, ImportError, Place, Reader, Source, glob};
use crate::import::{Options, Report};

/// A directive with the sections around it, the innermost last.
#[derive(Clone, Debug)]
pub struct Directive {
    /// The directive.
    pub node: Node,
    /// `<Location>` and the like, with their first argument.
    pub within: Vec<(String, String)>,
}

/// A server: the main one, or a virtual host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Addresses of `<VirtualHost>`.
    pub addresses: Vec<String>,
    /// Where it begins.
    pub place: Option<Place>,
    /// In their order.
    pub directives: Vec<Directive>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct All {
    /// What stands outside of virtual hosts.
    pub main: Host,
    /// In their order.
    pub hosts: Vec<Host>,
    /// `ServerRoot`, or the folder of the file.
    pub root: PathBuf,
    /// Where else files are looked for: a copy of the configuration has them beside it.
    pub beside: Vec<PathBuf>,
}

/// Modules that this balancer stands for; a condition on the absence of one is false.
const MODULES: [&str; 14] = [
    "mod_jk.c",
    "jk_module",
    "mod_ssl.c",
    "ssl_module",
    "mod_alias.c",
    "alias_module",
    "mod_dir.c",
    "dir_module",
    "mod_rewrite.c",
    "rewrite_module",
    "mod_headers.c",
    "headers_module",
    "mod_http2.c",
    "http2_module",
];

struct Collector<'a> {
    all: All,
    reader: &'a mut Reader,
    defined: HashMap<String, String>,
    report: &'a mut Report,
}

/// Reads a file and those that it includes.
pub fn collect(
    file: &Path,
    reader: &mut Reader,
    options: &Options,
    report: &mut Report,
) -> Result<All, ImportError> {
    let source = reader.read(file)?;
    let folder = file.parent().map(Path::to_path_buf).unwrap_or_default();
    let above = folder.parent().map(Path::to_path_buf);
    let beside = std::iter::once(folder.clone()).chain(above).collect();
    let mut collector = Collector {
        all: All {
            root: folder.clone(),
            beside,
            ..All::default()
        },
        reader,
        defined: options.environment.clone(),
        report,
    };
    collector.source(&source, 0, &mut Vec::new(), None)?;
    Ok(collector.all)
}

impl Collector<'_> {
    fn source(
        &mut self,
        source: &Source,
        depth: usize,
        within: &mut Vec<(String, String)>,
        host: Option<usize>,
    ) -> Result<(), ImportError> {
        let nodes = lex::read(source, &mut self.defined)?;
        self.nodes(nodes, depth, within, host)
    }

    fn nodes(
        &mut self,
        nodes: Vec<Node>,
        depth: usize,
        within: &mut Vec<(String, String)>,
        host: Option<usize>,
    ) -> Result<(), ImportError> {
        for mut node in nodes {
            let Some(inside) = node.inside.take() else {
                self.directive(node, depth, within, host)?;
                continue;
            };
            node.inside = Some(Vec::new());
            match node.name.as_str() {
                "ifmodule" | "ifdefine" | "ifversion" | "iffile" | "ifdirective" | "ifsection" => {
                    if self.holds(&node) {
                        self.nodes(inside, depth, within, host)?;
                    } else {
                        let reason = "the condition is not met: nothing in it was looked at";
                        self.report.note(&node.place, node.shown(), reason);
                    }
                }
                "virtualhost" if host.is_none() => {
                    self.all.hosts.push(Host {
                        addresses: node.args.clone(),
                        place: Some(node.place.clone()),
                        directives: Vec::new(),
                    });
                    let at = self.all.hosts.len() - 1;
                    self.nodes(inside, depth, within, Some(at))?;
                }
                _ => {
                    within.push((node.name.clone(), node.arg(0).to_owned()));
                    self.nodes(inside, depth, within, host)?;
                    within.pop();
                }
            }
        }
        Ok(())
    }

    fn holds(&self, node: &Node) -> bool {
        let (negated, word) = match node.arg(0).strip_prefix('!') {
            Some(word) => (true, word),
            None => (false, node.arg(0)),
        };
        match node.name.as_str() {
            "ifmodule" => match negated {
                true => !MODULES.contains(&word),
                // What is in it will be looked at, and reported where nothing is like it.
                false => true,
            },
            "ifdefine" => self.defined.contains_key(word) != negated,
            "iffile" => Path::new(word).exists() != negated,
            // 2.4 is what there is.
            _ => !negated,
        }
    }

    fn directive(
        &mut self,
        node: Node,
        depth: usize,
        within: &mut Vec<(String, String)>,
        host: Option<usize>,
    ) -> Result<(), ImportError> {
        match node.name.as_str() {
            "serverroot" => {
                self.all.root = PathBuf::from(node.arg(0));
                return Ok(());
            }
            "define" | "undefine" => return Ok(()),
            "include" | "includeoptional" => {
                let optional = node.name == "includeoptional";
                if depth >= DEPTH_MAX {
                    let expected = format!("at most {DEPTH_MAX} files in each other");
                    return Err(ImportError::at(
                        &node.place,
                        0,
                        "files are included too deeply",
                        expected,
                    ));
                }
                let files = self.included(node.arg(0));
                if files.is_empty() && !optional {
                    self.report.left(
                        &node.place,
                        node.shown(),
                        "there is no such file here: import it as well",
                    );
                }
                for file in files {
                    let source = self.reader.read(&file)?;
                    self.source(&source, depth + 1, within, host)?;
                }
                return Ok(());
            }
            _ => {}
        }
        let directive = Directive {
            node,
            within: within.clone(),
        };
        match host {
            Some(at) => self.all.hosts[at].directives.push(directive),
            None => self.all.main.directives.push(directive),
        }
        Ok(())
    }

    /// The files that an `Include` means: below `ServerRoot`, or, for a copy of the
    /// configuration, beside the file or above it.
    fn included(&self, pattern: &str) -> Vec<PathBuf> {
        let pattern = Path::new(pattern);
        for root in std::iter::once(&self.all.root).chain(&self.all.beside) {
            let path = root.join(pattern);
            let files = match path.is_dir() {
                true => glob(&path.join("*")),
                false => glob(&path),
            };
            let files: Vec<PathBuf> = files
                .unwrap_or_default()
                .into_iter()
                .filter(|f| f.is_file())
                .collect();
            if !files.is_empty() {
                return files;
            }
        }
        Vec::new()
    }
}

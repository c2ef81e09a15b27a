//! Asks all nodes of a group about its sessions, and says whose answer is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::protocol::Refusal;
use super::sessions::{Names, busy};
use crate::session::handle::Sessions;
use crate::session::survey::{Answer, Count, Listed, Question, What};
use crate::session::{GroupId, NodeId, group_key};

/// How long one question waits for other nodes. A link that is up answers within
/// milliseconds; a node that does not is not asked again.
const WAIT: Duration = Duration::from_secs(1);
/// Sessions that are asked for at a time.
const PAGE: u32 = 1_000;

/// A node whose sessions are not in an answer, or not all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unheard {
    /// Its name.
    pub node: String,
    /// Why.
    pub why: String,
}

/// One request of an operator.
pub(super) struct Survey<'a> {
    sessions: &'a Sessions,
    names: Names<'a>,
    /// Nodes that do not answer: they are not asked again.
    silent: Vec<NodeId>,
    odd: BTreeMap<NodeId, &'static str>,
}

impl<'a> Survey<'a> {
    pub(super) fn new(sessions: &'a Sessions, names: Names<'a>) -> Self {
        Self {
            sessions,
            names,
            silent: Vec::new(),
            odd: BTreeMap::new(),
        }
    }

    /// What is missing in all that was answered so far.
    pub(super) fn unheard(&self) -> Vec<Unheard> {
        let silent = self.silent.iter().map(|node| (node, "no answer"));
        let odd = self.odd.iter().map(|(node, why)| (node, *why));
        let mut unheard: Vec<Unheard> = silent
            .chain(odd)
            .map(|(node, why)| Unheard {
                node: self.names.node(*node),
                why: why.into(),
            })
            .collect();
        unheard.sort_by(|a, b| a.node.cmp(&b.node));
        unheard.dedup_by(|a, b| a.node == b.node);
        unheard
    }

    async fn ask(&mut self, question: Question) -> Result<Vec<(NodeId, Answer)>, Refusal> {
        let heard = self.sessions.survey(question, &self.silent, WAIT).await;
        let heard = heard.ok_or_else(busy)?;
        self.silent.extend(heard.silent);
        let view = heard.answers.first().map(|(_, own)| own.view);
        for (node, answer) in &heard.answers {
            let odd = match answer {
                Answer { known: false, .. } => "its configuration does not have the group",
                Answer { ready: false, .. } => "it has not caught up with the others yet",
                answer if Some(answer.view) != view => "it sees other members just now",
                _ => continue,
            };
            self.odd.insert(*node, odd);
        }
        Ok(heard.answers)
    }

    /// Sessions of a group by route: over the cluster, and (as `copies`) on this node.
    pub(super) async fn count(
        &mut self,
        group: GroupId,
        route: Option<&str>,
        prefix: Option<&str>,
    ) -> Result<BTreeMap<String, Count>, Refusal> {
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let what = What::Count { from };
            let question = self.question(group, route, prefix, what);
            let answers = self.ask(question).await?;
            next = None;
            for (i, (_, answer)) in answers.into_iter().enumerate() {
                let own = i == 0;
                if own {
                    next = answer.next.and_then(|next| u16::try_from(next).ok());
                }
                for (route, theirs) in answer.counts {
                    let count = counts.entry(route).or_default();
                    count.sessions += theirs.sessions;
                    count.copies += if own { theirs.copies } else { 0 };
                    count.last_ends = count.last_ends.max(theirs.last_ends);
                }
            }
        }
        Ok(counts)
    }

    /// Shows the sessions of a group in the order of their places, until `show` has enough:
    /// those of the cluster, or (`held`) all copies of this node.
    pub(super) async fn each(
        &mut self,
        group: GroupId,
        held: bool,
        (route, prefix): (Option<&str>, Option<&str>),
        mut show: impl FnMut(Listed) -> bool,
    ) -> Result<(), Refusal> {
        let mut next = Some(0);
        while let Some(from) = next {
            let most = PAGE;
            let what = match held {
                false => What::List { from, most },
                true => What::Held { from, most },
            };
            let question = self.question(group, route, prefix, what);
            let answers = self.ask(question).await?;
            // What lies behind the end of somebody's page comes with the next question.
            let end = answers.iter().filter_map(|(_, answer)| answer.next).min();
            let mut page: Vec<Listed> = answers
                .into_iter()
                .flat_map(|(_, answer)| answer.list)
                .filter(|listed| end.is_none_or(|end| listed.place < end))
                .collect();
            page.sort_by(|a, b| (a.place, &a.id).cmp(&(b.place, &b.id)));
            // While nodes do not agree on the members, two can answer for one session.
            page.dedup_by(|a, b| a.id == b.id);
            for listed in page {
                if !show(listed) {
                    return Ok(());
                }
            }
            // A place that does not come forward would be asked for again and again.
            next = end.filter(|end| *end > from);
        }
        Ok(())
    }

    /// What every node of the group has of one session; this node first.
    pub(super) async fn copies(
        &mut self,
        group: GroupId,
        id: &str,
    ) -> Result<Vec<(NodeId, Answer)>, Refusal> {
        let question = self.question(group, None, Some(id), What::Copy);
        self.ask(question).await
    }

    /// Nodes that did not answer.
    pub(super) fn silent(&self) -> &[NodeId] {
        &self.silent
    }

    fn question(
        &self,
        group: GroupId,
        route: Option<&str>,
        prefix: Option<&str>,
        what: What,
    ) -> Question {
        let name = self.sessions.group(group).map_or("", |group| &group.name);
        Question {
            group: group_key(name),
            route: route.map(str::to_owned),
            prefix: prefix.map(str::to_owned),
            what,
        }
    }
}

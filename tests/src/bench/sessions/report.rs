//! The table of costs by the number of nodes, and what of it is judged.

use comfy_table::{CellAlignment, Table, presets};

use super::words::{Sums, Where};
use crate::bench::figure::{Figure, Target};

/// What a write costs.
pub struct Cost {
    /// With so many nodes.
    pub nodes: usize,
    /// Where it begins.
    pub at: Where,
    /// Few a second; otherwise flat out.
    pub sparse: bool,
    /// What all nodes use each second without writes. It has been subtracted.
    pub idle: Sums,
    /// For each write, on all nodes together.
    pub each: Sums,
    /// Writes per second.
    pub rate: f64,
}

fn begins(at: Where) -> &'static str {
    match at {
        Where::Primary => "at the primary",
        Where::Elsewhere => "elsewhere, forwarded",
        Where::Any => "anywhere",
    }
}

fn load(sparse: bool) -> &'static str {
    match sparse {
        true => "sparse",
        false => "flat out",
    }
}

/// Everything.
pub fn cost_table(costs: &[Cost]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header([
        "nodes",
        "load",
        "begins",
        "writes/s",
        "forwarded",
        "messages",
        "frames",
        "link writes",
        "bytes",
        "switches",
        "cpu us",
        "idle cpu %",
    ]);
    for column in [0].into_iter().chain(3..12) {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for cost in costs {
        let each = &cost.each;
        table.add_row([
            cost.nodes.to_string(),
            load(cost.sparse).into(),
            begins(cost.at).into(),
            format!("{:.0}", cost.rate),
            format!("{:.2}", each.forwards),
            format!("{:.2}", each.records),
            format!("{:.2}", each.frames),
            format!("{:.2}", each.link_writes),
            format!("{:.0}", each.link_bytes),
            format!("{:.2}", each.switches),
            format!("{:.1}", each.cpu * 1e6),
            format!("{:.1}", cost.idle.cpu * 100.0),
        ]);
    }
    table
}

/// Each number of nodes against the least.
pub fn cost_figures(costs: &[Cost]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for sparse in [false, true] {
        for at in [Where::Primary, Where::Elsewhere, Where::Any] {
            let of = |what: fn(&Sums) -> f64, unit| {
                let some = costs.iter().filter(|c| c.sparse == sparse && c.at == at);
                some.map(|cost| {
                    let name = format!("{}, {}, {} nodes", load(sparse), begins(at), cost.nodes);
                    let value = what(&cost.each);
                    Figure::new(name, value, value, unit)
                })
                .collect::<Vec<_>>()
            };
            for all in [
                of(|sums| sums.records, "messages"),
                of(|sums| sums.link_bytes, "bytes"),
                of(|sums| sums.cpu * 1e6, "us"),
            ] {
                let Some(first) = all.first().cloned() else {
                    continue;
                };
                let mixed = at == Where::Any;
                figures.extend(all.into_iter().enumerate().map(|(i, figure)| match i {
                    0 => figure,
                    // What begins anywhere is a mixture of the others that changes with
                    // the number of nodes.
                    _ if mixed => figure.against(&first),
                    _ => figure.against(&first).target(Target::AtMost(CONSTANT)),
                }));
            }
        }
    }
    figures
}

/// As far as this, a cost counts as the same.
const CONSTANT: f64 = 1.15;

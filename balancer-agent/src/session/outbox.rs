//! What waits to be sent to one peer, and what that peer last said of itself.

use std::collections::VecDeque;

use super::codec::{Flags, HEADER, Header, Record};
use super::config::Limits;
use super::types::Time;

/// One other node of the view.
#[derive(Debug)]
pub(super) struct Peer {
    pub incarnation: u64,
    /// The frame that records are appended to; empty, or a header and records.
    open: Vec<u8>,
    closed: VecDeque<Vec<u8>>,
    closed_bytes: usize,
    in_flight: u8,
    /// Copies were dropped because the outbox was full: the peer must be compared.
    pub missed: bool,
    /// What it said in this incarnation.
    pub flags: Option<Flags>,
    /// The number of that report.
    pub round: u64,
    /// The view that it said it has.
    pub view: u64,
    /// When it said so.
    pub heard: Time,
}

impl Peer {
    pub fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            open: Vec::new(),
            closed: VecDeque::new(),
            closed_bytes: 0,
            in_flight: 0,
            missed: false,
            flags: None,
            round: 0,
            view: 0,
            heard: Time(0),
        }
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.closed_bytes + self.open.len()
    }

    /// Appends a record. `false`: the outbox is full, and the record is dropped.
    pub fn push(&mut self, record: &Record<'_>, limits: &Limits) -> bool {
        if self.waiting() >= limits.outbox {
            return false;
        }
        if self.open.is_empty() {
            self.open.resize(HEADER, 0);
        }
        record.encode(&mut self.open);
        if self.open.len() >= limits.frame {
            self.close();
        }
        true
    }

    fn close(&mut self) {
        let frame = std::mem::take(&mut self.open);
        self.closed_bytes += frame.len();
        self.closed.push_back(frame);
    }

    /// The next frame that the driver may send.
    pub fn pop(&mut self, incarnation: u64, lamport: u64, credit: u8) -> Option<Vec<u8>> {
        if self.in_flight >= credit {
            return None;
        }
        if self.closed.is_empty() && !self.open.is_empty() {
            self.close();
        }
        let mut frame = self.closed.pop_front()?;
        self.closed_bytes -= frame.len();
        self.in_flight += 1;
        let header = Header {
            incarnation,
            to: self.incarnation,
            lamport,
        };
        header.write(&mut frame);
        Some(frame)
    }

    /// A frame has been handed to the network.
    pub fn sent(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The connection is gone, and with it an unknown number of frames.
    pub fn reset(&mut self) {
        self.in_flight = 0;
    }
}

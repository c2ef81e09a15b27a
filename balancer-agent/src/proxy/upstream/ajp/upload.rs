//! A request's body on its way to the container, which takes it packet by packet: the
//! client is asked for more only when the container has asked us.

use std::io;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use super::decode::Violation;
use super::encode::{BODY_END, BODY_HEAD, BodyPacket};
use crate::model::http::PACKET_LEAST;
use crate::proxy::types::BodyError;
use crate::proxy::upstream::body::{Extent, RequestBody};
use crate::proxy::upstream::wait::Waits;
use crate::proxy::upstream::wire::{WRITE_MOST, Wire};

/// The request's side of an exchange.
pub(super) struct Upload {
    body: RequestBody,
    packet_size: usize,
    /// Taken from the client and not in a packet yet.
    taken: Bytes,
    /// Bytes that the length still promises; `None` without a length.
    rest: Option<u64>,
    /// Nothing more comes from the client.
    ended: bool,
    /// Most bytes of data in the packet that is owed.
    owed: Option<usize>,
    /// The container has seen the empty packet.
    told: bool,
    /// The backend takes no more; its response may still come.
    broken: Option<io::Error>,
}

impl Upload {
    pub fn new(body: RequestBody, extent: Extent, packet_size: usize) -> Self {
        Self {
            body,
            packet_size,
            taken: Bytes::new(),
            rest: match extent {
                Extent::None => Some(0),
                Extent::Length(length) => Some(length),
                Extent::Unknown => None,
            },
            ended: extent == Extent::None,
            // With a length the first packet comes unasked.
            owed: match extent {
                Extent::None | Extent::Length(0) | Extent::Unknown => None,
                Extent::Length(_) => Some(packet_size - BODY_HEAD),
            },
            told: false,
            broken: None,
        }
    }

    /// One that is over, of which so many bytes came from the client: there is nothing but
    /// its end to send, should the container ask for more.
    pub fn spent(bytes: u64) -> Self {
        Self::new(RequestBody::spent(bytes), Extent::None, PACKET_LEAST)
    }

    /// Bytes that came from the client.
    pub fn bytes(&self) -> u64 {
        self.body.bytes()
    }

    /// For another attempt.
    pub fn into_body(self) -> RequestBody {
        self.body
    }

    /// Why the backend took no more.
    pub fn take_broken(&mut self) -> Option<io::Error> {
        self.broken.take()
    }

    /// Whether nothing more has to come from the client.
    pub fn is_taken(&self) -> bool {
        (self.ended || self.rest == Some(0)) && self.taken.is_empty() && self.broken.is_none()
    }

    /// Whether it is certain that the container has all of it, and wants nothing: only then
    /// the next request may follow. It may have answered without having asked for the rest.
    pub fn is_settled(&self) -> bool {
        self.is_taken() && self.owed.is_none() && (self.rest == Some(0) || self.told)
    }

    /// Whether it has nothing more to do, here or for its source.
    pub fn is_over(&self) -> bool {
        self.ended && self.is_settled()
    }

    /// How far it is; changes whenever something moves.
    pub fn mark(&self) -> (u64, Option<usize>, bool) {
        (self.bytes(), self.owed, self.told)
    }

    /// The container asks for so many bytes.
    pub fn want(&mut self, bytes: u16) -> Result<(), Violation> {
        match self.owed.is_none() && bytes > 0 {
            true => self.owed = Some(usize::from(bytes)),
            // It has not got what it asked for before.
            false => return Err(Violation::Order("GET_BODY_CHUNK")),
        }
        Ok(())
    }

    /// Sends what is owed, as far as it goes now. `Err` is the client's.
    pub fn poll(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Result<Waits, BodyError> {
        if self.broken.is_some() {
            return Ok(Waits::Backend);
        }
        self.drain(cx)?;
        loop {
            let mut waits = Waits::Backend;
            if self.owed.is_some()
                && wire.out.len() < WRITE_MOST
                && self.fill(&mut wire.out, cx)?.is_pending()
            {
                waits = Waits::Client;
            }
            match wire.poll_flush(cx) {
                Poll::Ready(Ok(())) if self.owed.is_some() && waits == Waits::Backend => {}
                Poll::Ready(Ok(())) => return Ok(waits),
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    wire.out.clear();
                    return Ok(Waits::Backend);
                }
                Poll::Pending => return Ok(Waits::Backend),
            }
        }
    }

    /// Writes the packet that is owed: with what there is, though it be less than was asked
    /// for; the container then asks again.
    fn fill(&mut self, out: &mut BytesMut, cx: &mut Context<'_>) -> Result<Poll<()>, BodyError> {
        let Some(owed) = self.owed else {
            return Ok(Poll::Ready(()));
        };
        let packet = BodyPacket::begin(owed, self.packet_size, out);
        let mut pending = false;
        while packet.room(out) > 0 {
            if !self.taken.is_empty() {
                packet.put(&mut self.taken, out);
                continue;
            }
            // Who waits for the end of what is complete, waits for the client in vain.
            if self.ended || self.rest == Some(0) {
                break;
            }
            match self.body.poll_frame(cx) {
                // Trailers have no place here.
                Poll::Ready(Some(frame)) => {
                    if let Ok(data) = frame?.into_data() {
                        self.take(data)?;
                    }
                }
                Poll::Ready(None) if self.rest.is_some() => {
                    return Err("less body than its length said".into());
                }
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => {
                    pending = true;
                    break;
                }
            }
        }
        if !packet.end(out) {
            if pending {
                return Ok(Poll::Pending);
            }
            out.extend_from_slice(&BODY_END);
            self.told = true;
        }
        self.owed = None;
        Ok(Poll::Ready(()))
    }

    /// Hears the end of a body of which all has come, for its source's sake.
    fn drain(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        while !self.ended && self.rest == Some(0) && self.taken.is_empty() {
            match self.body.poll_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    if let Ok(data) = frame?.into_data() {
                        self.take(data)?;
                    }
                }
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, data: Bytes) -> Result<(), BodyError> {
        if let Some(rest) = &mut self.rest {
            *rest =
                (rest.checked_sub(data.len() as u64)).ok_or("more body than its length said")?;
        }
        self.taken = data;
        Ok(())
    }
}

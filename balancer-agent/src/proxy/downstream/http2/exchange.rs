//! The answering side of a stream, as far as several have to reach it: the stream itself,
//! who sends interim responses, and the request's body, which asks for itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode};

use super::super::guard::Refusal;
use super::super::inform::MOST;
use super::Streams;

/// What a field costs beyond its bytes (RFC 9113, 6.5.2).
const FIELD: usize = 32;

/// A stream until its response.
pub(in super::super) struct Exchange {
    streams: Rc<Streams>,
    respond: RefCell<Option<SendResponse<Bytes>>>,
    /// Why the request's body was refused.
    refusal: Cell<Option<Refusal>>,
    /// Bytes of interim responses so far. When they leave is h2's to know: all of a
    /// request's are within the bound.
    informed: Cell<usize>,
}

impl Exchange {
    /// Of a stream that was just opened.
    pub(super) fn new(respond: SendResponse<Bytes>, streams: &Rc<Streams>) -> Self {
        Self {
            streams: Rc::clone(streams),
            respond: RefCell::new(Some(respond)),
            refusal: Cell::new(None),
            informed: Cell::new(0),
        }
    }

    /// Says an interim response; whether it will be sent.
    pub fn inform(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let mut respond = self.respond.borrow_mut();
        let Some(respond) = &mut *respond else {
            return false;
        };
        let fields = headers.iter();
        let bytes = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD);
        let informed = self.informed.get() + FIELD + bytes.sum::<usize>();
        if informed > MOST {
            return false;
        }
        self.informed.set(informed);
        let mut interim = Response::new(());
        *interim.status_mut() = status;
        *interim.headers_mut() = headers.clone();
        self.streams.opening.set(false);
        // It fails for fields that HTTP/2 does not have.
        respond.send_informational(interim).is_ok()
    }

    /// The request's body is refused.
    pub(super) fn refuse(&self, refusal: Refusal) {
        self.refusal.set(Some(refusal));
    }

    /// Why the request's body was refused.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.get()
    }

    /// Looks at the response's side, while there was no response.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut SendResponse<Bytes>) -> T) -> Option<T> {
        self.respond.borrow_mut().as_mut().map(look)
    }

    /// The stream has ended.
    pub(super) fn close(&self) {
        self.respond.borrow_mut().take();
    }

    /// Says the response. `None` when the stream has ended meanwhile, or can't say it.
    pub(super) fn respond(&self, response: Response<()>, end: bool) -> Option<SendStream<Bytes>> {
        let mut respond = self.respond.borrow_mut().take()?;
        match respond.send_response(response, end) {
            Ok(stream) => Some(stream),
            Err(error) => {
                tracing::debug!(%error, "a response can't be sent");
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
                None
            }
        }
    }
}

/// Puts a new exchange where another one was, in its memory when nobody has it any more.
pub(super) fn renew(place: &mut Option<Rc<Exchange>>, exchange: Exchange) -> Rc<Exchange> {
    match place.as_mut().and_then(Rc::get_mut) {
        Some(old) => {
            *old = exchange;
            place.clone().unwrap_or_else(|| unreachable!())
        }
        None => Rc::clone(place.insert(Rc::new(exchange))),
    }
}

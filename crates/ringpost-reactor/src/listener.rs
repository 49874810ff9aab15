//! A listening socket: multishot accept into a bounded queue.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::engine::{Completion, Request, Token};
use crate::ops::Owner;
use crate::reactor::{Core, Driver};
use crate::stats::add;
use crate::stream::StreamError;
use crate::waiters::replace_waker;

/// First and longest rest after the host ran out of descriptors or memory.
const REST_MIN: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct State {
    queue: VecDeque<OwnedFd>,
    armed: Option<Token>,
    cancelling: bool,
    resting: bool,
    rest: Duration,
    waiter: Option<Waker>,
    failure: Option<StreamError>,
    closed: bool,
    /// Accepting has been stopped from above.
    paused: bool,
    /// Whoever waits until the kernel has stopped.
    pauser: Option<Waker>,
}

pub(crate) struct ListenerCell {
    socket: OwnedFd,
    state: RefCell<State>,
}

impl fmt::Debug for ListenerCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerCell").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// The handle of a listening socket on a reactor. Dropping it stops accepting and closes the socket;
/// connections accepted and not taken are closed.
pub struct Listener {
    cell: Rc<ListenerCell>,
    core: Rc<Core>,
}

impl Listener {
    pub(crate) fn adopt(core: &Rc<Core>, socket: OwnedFd) -> Self {
        let state = State {
            queue: VecDeque::new(),
            armed: None,
            cancelling: false,
            resting: false,
            rest: REST_MIN,
            waiter: None,
            failure: core.is_closed().then_some(StreamError::RuntimeEnded),
            closed: false,
            paused: false,
            pauser: None,
        };
        // An error means that it is no socket; accepting says so.
        let _ = rustix::io::ioctl_fionbio(&socket, true);
        let cell = Rc::new(ListenerCell { socket, state: RefCell::new(state) });
        if !core.is_closed() {
            cell.arm(core, &mut core.driver.borrow_mut());
        }
        Self { cell, core: Rc::clone(core) }
    }

    /// The listening socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.cell.socket.as_fd()
    }

    /// Takes the next accepted socket: non-blocking, close-on-exec. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if the socket can't accept any more. Running out of descriptors or memory is
    /// none: accepting rests and goes on by itself.
    pub fn poll_accept(&self, context: &mut Context<'_>) -> Poll<Result<OwnedFd, StreamError>> {
        if self.core.is_in_child() {
            // What has been accepted is the parent's.
            return Poll::Ready(Err(StreamError::RuntimeEnded));
        }
        let mut state = self.cell.state.borrow_mut();
        if let Some(socket) = state.queue.pop_front() {
            let resume = state.armed.is_none()
                && !state.resting
                && state.queue.len() <= self.core.config.accept_queue_max / 2;
            drop(state);
            if resume {
                self.cell.arm(&self.core, &mut self.core.driver.borrow_mut());
            }
            return Poll::Ready(Ok(socket));
        }
        if let Some(error) = state.failure.or_else(|| self.core.end()) {
            return Poll::Ready(Err(error));
        }
        let replaced = replace_waker(&mut state.waiter, context.waker());
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// Stops accepting, and waits until the kernel accepts no more for this listener: what it has
    /// accepted by then can be taken with [`Listener::poll_accept`], later connections stay in the
    /// backlog. Undone by [`Listener::resume`]. Cancel safe: the stop goes on without the waiter.
    pub fn poll_paused(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.cell.state.borrow_mut();
        let Some(token) = state.armed.filter(|_| !self.core.is_closed()) else {
            state.paused = true;
            return Poll::Ready(());
        };
        if state.failure.is_some() {
            return Poll::Ready(());
        }
        let replaced = replace_waker(&mut state.pauser, context.waker());
        state.paused = true;
        let begins = !std::mem::replace(&mut state.cancelling, true);
        drop(state);
        if begins {
            self.core.driver.borrow_mut().cancel(token, self.cell.raw_fd());
        }
        drop(replaced);
        Poll::Pending
    }

    /// Accepts again after [`Listener::poll_paused`].
    pub fn resume(&self) {
        let resting = {
            let mut state = self.cell.state.borrow_mut();
            state.paused = false;
            state.resting
        };
        // The end of a rest arms it.
        if !resting && !self.core.is_closed() {
            self.cell.arm(&self.core, &mut self.core.driver.borrow_mut());
        }
    }

    /// Ends a paused listener: once what was accepted has been taken, [`Listener::poll_accept`] reports
    /// [`StreamError::RuntimeEnded`].
    pub fn end(&self) {
        let mut wakers = Vec::new();
        self.cell.fail(libc::ECANCELED, &mut wakers);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let dropped = {
            let mut state = self.cell.state.borrow_mut();
            state.closed = true;
            (std::mem::take(&mut state.queue), state.waiter.take(), state.pauser.take())
        };
        drop(dropped);
        let Ok(mut driver) = self.core.driver.try_borrow_mut() else { return };
        let mut state = self.cell.state.borrow_mut();
        if std::mem::take(&mut state.resting) {
            // It would listen until its rest is over.
            driver.resting.retain(|(_, listener)| !Rc::ptr_eq(listener, &self.cell));
        }
        if let Some(token) = state.armed
            && !self.core.is_closed()
        {
            driver.cancel(token, self.cell.raw_fd());
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("socket", &self.cell.socket).finish_non_exhaustive()
    }
}

impl ListenerCell {
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Starts the multishot accept, if nothing speaks against it.
    pub(crate) fn arm(self: &Rc<Self>, core: &Core, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        state.resting = false;
        if state.armed.is_some()
            || state.closed
            || state.paused
            || state.failure.is_some()
            || state.queue.len() >= core.config.accept_queue_max
        {
            return;
        }
        state.cancelling = false;
        let request = Request::Accept { fd: self.raw_fd() };
        state.armed = driver.start(|| Owner::Accept(Rc::clone(self)), request);
        if state.armed.is_none() {
            self.rest(&mut state, driver);
        }
    }

    fn rest(self: &Rc<Self>, state: &mut State, driver: &mut Driver) {
        state.resting = true;
        driver.resting.push((driver.clock.now() + state.rest, Rc::clone(self)));
        state.rest = (state.rest * 2).min(REST_MAX);
    }

    /// An accept delivered a socket or ended.
    pub(crate) fn accepted(self: &Rc<Self>, core: &Core, driver: &mut Driver, done: Completion) {
        let mut state = self.state.borrow_mut();
        if done.result >= 0 {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            let socket = unsafe { OwnedFd::from_raw_fd(done.result) };
            state.rest = REST_MIN;
            if state.closed {
                drop(socket);
            } else {
                state.queue.push_back(socket);
                driver.wakers.extend(state.waiter.take());
            }
        }
        if done.more {
            if state.queue.len() >= core.config.accept_queue_max
                && !state.cancelling
                && let Some(token) = state.armed
            {
                state.cancelling = true;
                drop(state);
                driver.cancel(token, self.raw_fd());
            }
            return;
        }
        state.armed = None;
        driver.wakers.extend(state.pauser.take());
        if state.closed || state.paused || state.failure.is_some() {
            return;
        }
        match -done.result {
            ..=0 | libc::EINTR | libc::EAGAIN | libc::ECONNABORTED => {
                drop(state);
                self.arm(core, driver);
            }
            libc::ECANCELED if state.cancelling => {
                drop(state);
                self.arm(core, driver);
            }
            // A cancel that is not ours says that the kernel had no memory to wait with.
            libc::ECANCELED | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS => {
                add(&core.counters.accepts_deferred, 1);
                tracing::warn!(errno = -done.result, "accepting rests: no descriptors or memory");
                self.rest(&mut state, driver);
            }
            errno => {
                state.failure = Some(StreamError::Kernel { errno });
                driver.wakers.extend(state.waiter.take());
            }
        }
    }

    pub(crate) fn fail(&self, errno: i32, wakers: &mut Vec<Waker>) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let error = match errno {
            libc::ECANCELED => StreamError::RuntimeEnded,
            errno => StreamError::Kernel { errno },
        };
        state.failure.get_or_insert(error);
        wakers.extend(state.waiter.take());
        wakers.extend(state.pauser.take());
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use super::*;
    use crate::config::Config;
    use crate::engine::Token;
    use crate::reactor::{Reactor, Wait};

    /// A listener whose accept has just been paused.
    fn paused(reactor: &Reactor) -> Listener {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringpost-resting-listener-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixListener::bind_addr(&address).unwrap();
        let listener = reactor.adopt_listener(socket.into());
        let mut context = Context::from_waker(Waker::noop());
        while listener.poll_paused(&mut context).is_pending() {
            reactor.turn(Wait::No).unwrap();
        }
        listener
    }

    /// Accepting goes on until nobody waits, and must not wait for somebody then.
    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_blocking_socket_holds_up_nobody() {
        use crate::capabilities::EngineChoice;
        for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
            let name = format!("ringpost-blocking-listener-{}-{engine:?}", std::process::id());
            let address = SocketAddr::from_abstract_name(&name).unwrap();
            let socket = UnixListener::bind_addr(&address).unwrap();
            let client = std::os::unix::net::UnixStream::connect_addr(&address).unwrap();
            let (done, end) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let reactor = Reactor::new(Config { engine, ..Config::default() }).unwrap();
                let listener = reactor.adopt_listener(socket.into());
                for _ in 0..3 {
                    reactor.turn(Wait::No).unwrap();
                }
                let mut context = Context::from_waker(Waker::noop());
                done.send(listener.poll_accept(&mut context).is_ready()).unwrap();
            });
            assert_eq!(end.recv_timeout(Duration::from_secs(10)), Ok(true), "{engine:?}");
            drop(client);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn an_accept_that_the_kernel_cancels_rests() {
        let reactor = Reactor::new(Config::default()).unwrap();
        let listener = paused(&reactor);
        listener.cell.state.borrow_mut().paused = false;
        listener.cell.state.borrow_mut().cancelling = false;
        let (token, result) = (Token(0), -libc::ECANCELED);
        let done = Completion { token, result, more: false, received: None };
        listener.cell.accepted(&reactor.core, &mut reactor.core.driver.borrow_mut(), done);
        assert!(listener.cell.state.borrow().resting, "it is asked for at once");
        // Paused and resumed meanwhile, it still rests, once.
        assert!(listener.poll_paused(&mut Context::from_waker(Waker::noop())).is_ready());
        listener.resume();
        assert!(listener.cell.state.borrow().resting);
        let start = Instant::now();
        while listener.cell.state.borrow().armed.is_none() {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not accept again");
            reactor.turn(Wait::Until(start + Duration::from_secs(20))).unwrap();
        }
        assert!(reactor.core.driver.borrow().resting.is_empty());
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn dropped_while_it_rests_it_is_gone_at_once() {
        let reactor = Reactor::new(Config::default()).unwrap();
        let listener = paused(&reactor);
        let cell = Rc::downgrade(&listener.cell);
        {
            let mut driver = reactor.core.driver.borrow_mut();
            let mut state = listener.cell.state.borrow_mut();
            state.paused = false;
            listener.cell.rest(&mut state, &mut driver);
        }
        drop(listener);
        assert_eq!(cell.strong_count(), 0, "something keeps it listening");
    }
}

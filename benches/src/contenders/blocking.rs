//! Blocking reads and writes, a thread per connection on both sides.
//!
//! `blocking+spin` repeats non-blocking calls instead of sleeping in blocking ones. With one
//! connection that is the least that two processes can do over a socket, and thus the reference of
//! the ping-pong scenario.

use std::{os::fd::OwnedFd, thread, time::Instant};

use anyhow::{Context, Result, bail};

use super::{
    Client, Contender, Server, Waiting, buffer_bytes,
    socket::{Link, accept_all, connect_all},
    unless_closed,
};
use crate::{
    frame::{self, FrameBuffer},
    scenario::Scenario,
};

#[derive(Debug)]
pub(super) struct Blocking {
    waiting: Waiting,
}

pub(super) static ALL: [Blocking; 2] =
    [Blocking { waiting: Waiting::Park }, Blocking { waiting: Waiting::Spin }];

impl Contender for Blocking {
    fn name(&self) -> &'static str {
        match self.waiting {
            Waiting::Park => "blocking",
            Waiting::Spin => "blocking+spin",
        }
    }

    fn about(&self) -> &'static str {
        match self.waiting {
            Waiting::Park => "blocking read and write, a thread per connection",
            Waiting::Spin => "non-blocking read and write, repeated until they succeed",
        }
    }

    fn scenarios(&self) -> &'static [Scenario] {
        match self.waiting {
            // One way and with one connection, `handwritten` is what blocking calls can do.
            Waiting::Park => &[Scenario::Pingpong, Scenario::Fanin, Scenario::Pipeline],
            // More spinning threads than processors only wait for each other.
            Waiting::Spin => &[Scenario::Pingpong],
        }
    }

    fn serve(&self, server: &Server) -> Result<()> {
        each_on_a_thread(accept_all(server)?, |socket| unless_closed(self.answer(server, socket)))
    }

    fn drive(&self, client: &Client) -> Result<()> {
        each_on_a_thread(connect_all(client)?, |socket| self.ask(client, socket))
    }
}

impl Blocking {
    /// Serves one connection.
    fn answer(&self, server: &Server, socket: OwnedFd) -> Result<()> {
        let link = Link::new(socket, self.waiting)?;
        let mut inspector = server.inspector();
        let mut received = FrameBuffer::new(buffer_bytes(&server.workload));
        let mut replies = Vec::with_capacity(buffer_bytes(&server.workload));
        loop {
            let count = link.read(received.space())?;
            if count == 0 {
                return Ok(());
            }
            received.filled(count);
            while let Some(payload) = received.next_frame()? {
                if inspector.inspect(payload)? {
                    frame::encode(payload, &mut replies);
                }
            }
            link.write_all(&replies)?;
            replies.clear();
        }
    }

    /// Keeps the requests of one connection in flight.
    fn ask(&self, client: &Client, socket: OwnedFd) -> Result<()> {
        let link = Link::new(socket, self.waiting)?;
        let length = client.workload.bytes;
        let mut exchange = client.exchange();
        let mut recorder = client.recorder();
        let mut received = FrameBuffer::new(buffer_bytes(&client.workload));
        let mut requests = Vec::with_capacity(buffer_bytes(&client.workload));
        let mut now = Instant::now();
        for _ in 0..client.depth() {
            frame::encode_with(length, &mut requests, |payload| exchange.request(now, payload));
        }
        while recorder.turn(now) {
            link.write_all(&requests)?;
            requests.clear();
            let count = link.read(received.space())?;
            now = Instant::now();
            if count == 0 {
                bail!("the server has closed");
            }
            received.filled(count);
            while let Some(payload) = received.next_frame()? {
                exchange.reply(now, payload, &mut recorder)?;
                frame::encode_with(length, &mut requests, |payload| exchange.request(now, payload));
            }
        }
        recorder.finish();
        Ok(())
    }
}

/// Runs the last one on the calling thread, so that one connection takes no extra thread.
fn each_on_a_thread(
    mut sockets: Vec<OwnedFd>,
    run: impl Fn(OwnedFd) -> Result<()> + Sync,
) -> Result<()> {
    let own = sockets.pop().context("a workload has connections")?;
    thread::scope(|scope| {
        let threads: Vec<_> =
            sockets.into_iter().map(|socket| scope.spawn(|| run(socket))).collect();
        let mut result = run(own);
        for thread in threads {
            let joined = thread.join().unwrap_or_else(|_| bail!("a thread panicked"));
            result = result.and(joined);
        }
        result
    })
}

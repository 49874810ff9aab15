//! tokio programs that frame with `LengthDelimitedCodec`, as a client and as a server, over real sockets.
//!
//! They are processes of their own, and cut what they write at random places; the other side sees lengths
//! and bodies in pieces.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::join;
use futures_util::{SinkExt, StreamExt};
use ringpost::{
    ByteOrder, Connection, ConnectionOptions, EngineChoice, LengthPrefix, Listener, PrefixWidth,
};
use ringpost_testkit::child::{self, Child, say};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, blocking, echo, place};
use ringpost_tests::software::client::LIMIT;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

on_both_engines!(tokio_asks, tokio_answers, tokio_ends_within_a_message);

/// The names of the formats: tokio's default, and two that have to be asked for.
const FORMATS: [&str; 4] = ["u32 big", "u32 little", "u16 big", "u16 little"];

fn prefix(format: &str) -> LengthPrefix {
    let (width, byte_order) = format.split_once(' ').expect("two words");
    LengthPrefix {
        width: if width == "u16" { PrefixWidth::U16 } else { PrefixWidth::U32 },
        byte_order: if byte_order == "big" { ByteOrder::Big } else { ByteOrder::Little },
    }
}

fn codec(format: &str) -> LengthDelimitedCodec {
    let mut builder = LengthDelimitedCodec::builder();
    match format {
        "u32 big" => return LengthDelimitedCodec::new(),
        "u32 little" => builder.length_field_type::<u32>().little_endian(),
        "u16 big" => builder.length_field_type::<u16>().big_endian(),
        _ => builder.length_field_type::<u16>().little_endian(),
    };
    builder.new_codec()
}

/// From 1 byte to 1 MiB, or to what 16 bits can say, and some without any.
fn lengths(format: &str) -> Vec<usize> {
    let mut lengths = vec![1, 0, 2, 3, 255, 256, 257, 1023, 1024, 4095, 4096, 8191, 8192, 65_535];
    if prefix(format).width == PrefixWidth::U32 {
        lengths.extend([65_536, 65_537, 200_000, (1 << 20) - 1, 1 << 20, 0, 1]);
    }
    let mut random = fastrand::Rng::with_seed(11);
    lengths.extend((0..300).map(|_| random.usize(..2000)));
    lengths
}

fn options(format: &str) -> ConnectionOptions {
    ConnectionOptions::new().length_prefixed(prefix(format)).frame_bytes_max(1 << 20)
}

/// Starts a tokio program in a role.
fn tokio_program(role: &str, format: &str, path: &Path) -> Child {
    let path = path.to_str().expect("UTF-8");
    Child::start(concat!(module_path!(), "::play"), &[role, format, path])
}

async fn ended_well(mut tokio: Child) {
    blocking(move || assert!(tokio.wait(LIMIT).success(), "the tokio program failed")).await;
}

/// tokio's client to our server.
fn tokio_asks(engine: EngineChoice) {
    for format in FORMATS {
        let (_directory, path) = place();
        block_on(engine, async {
            let listener = Listener::builder().connection(options(format)).bind(&path);
            let mut listener = listener.expect("a free path");
            let tokio = tokio_program("client", format, &path);
            echo(listener.accept().await.expect("it connects")).await;
            ended_well(tokio).await;
        });
    }
}

/// Our client to tokio's server.
fn tokio_answers(engine: EngineChoice) {
    for format in FORMATS {
        let (_directory, path) = place();
        let mut tokio = tokio_program("server", format, &path);
        assert_eq!(tokio.hear(), "ready");
        block_on(engine, async {
            let connection = Connection::connect_with(&path, options(format)).await;
            let mut connection = connection.expect("it listens");
            let (sender, receiver) = connection.halves();
            let sending = async {
                for (sequence, len) in (0..).zip(lengths(format)) {
                    let fill = |body: &mut [u8]| pattern::fill(sequence, body);
                    sender.send_with(len, fill).await.expect("it reads");
                }
                sender.shutdown().await.expect("it reads");
            };
            let receiving = async {
                for (sequence, len) in (0..).zip(lengths(format)) {
                    let message = receiver.recv().await.expect("messages").expect("no end");
                    pattern::check(sequence, len, &message);
                }
                assert!(receiver.recv().await.expect("no error").is_none(), "an end");
            };
            join(sending, receiving).await;
            ended_well(tokio).await;
        });
    }
}

/// What was whole arrives; what was not is no message.
fn tokio_ends_within_a_message(engine: EngineChoice) {
    for format in FORMATS {
        let (_directory, path) = place();
        block_on(engine, async {
            let listener = Listener::builder().connection(options(format)).bind(&path);
            let mut listener = listener.expect("a free path");
            let tokio = tokio_program("breaks off", format, &path);
            let mut connection = listener.accept().await.expect("it connects");
            let message = connection.recv().await.expect("a message").expect("no end");
            pattern::check(0, 5000, &message);
            drop(message);
            let error = connection.recv().await.map(|_| ()).expect_err("no message");
            assert_eq!(error, ringpost::RecvError::Truncated);
            ended_well(tokio).await;
        });
    }
}

/// The side of the tokio program. As a test of its own it does nothing.
#[test]
fn play() {
    let Some(words) = child::role() else { return };
    let [role, format, path] = &words[..] else { panic!("no such role: {words:?}") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let played = tokio::time::timeout(LIMIT, async {
            match role.as_str() {
                "client" => tokio_client(format, path).await,
                "server" => tokio_server(format, path).await,
                _ => tokio_breaks_off(format, path).await,
            }
        });
        played.await.expect("done in time").expect("no error");
    });
}

async fn tokio_client(format: &str, path: &str) -> io::Result<()> {
    let stream = InPieces::new(UnixStream::connect(path).await?);
    let (mut sink, mut stream) = Framed::new(stream, codec(format)).split();
    let sending = async {
        for (sequence, len) in (0..).zip(lengths(format)) {
            // Some leave with others, some alone.
            let body = Bytes::from(pattern::payload(sequence, len));
            if sequence % 3 == 0 { sink.send(body).await? } else { sink.feed(body).await? }
        }
        sink.close().await
    };
    let receiving = async {
        for (sequence, len) in (0..).zip(lengths(format)) {
            let body = stream.next().await.expect("no end")?;
            pattern::check(sequence, len, &body);
        }
        assert!(stream.next().await.is_none(), "an end");
        io::Result::Ok(())
    };
    let (sent, received) = join(sending, receiving).await;
    sent.and(received)
}

async fn tokio_server(format: &str, path: &str) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    say("ready");
    let stream = InPieces::new(listener.accept().await?.0);
    let (mut sink, mut stream) = Framed::new(stream, codec(format)).split();
    while let Some(body) = stream.next().await {
        sink.send(body?.freeze()).await?;
    }
    sink.close().await
}

async fn tokio_breaks_off(format: &str, path: &str) -> io::Result<()> {
    let stream = InPieces::new(UnixStream::connect(path).await?);
    let mut framed = Framed::new(stream, codec(format));
    framed.send(Bytes::from(pattern::payload(0, 5000))).await?;
    // The other half of this one is never written.
    let mut stream = framed.into_inner();
    let mut codec = codec(format);
    let mut bytes = bytes::BytesMut::new();
    tokio_util::codec::Encoder::encode(&mut codec, Bytes::from(vec![7; 3000]), &mut bytes)?;
    tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes[..1500]).await
}

/// Writes at most a random number of bytes at a time, and lets others run in between now and then.
struct InPieces {
    stream: UnixStream,
    random: fastrand::Rng,
    rest: bool,
}

impl InPieces {
    fn new(stream: UnixStream) -> Self {
        Self { stream, random: fastrand::Rng::with_seed(5), rest: false }
    }
}

impl AsyncRead for InPieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for InPieces {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.rest = !self.rest && self.random.u8(..4) == 0;
        if self.rest {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Within a length, within a small body, or almost anything.
        let most = [3, 100, 40_000][self.random.usize(..3)];
        let count = self.random.usize(1..=most).min(bytes.len());
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, &bytes[..count]));
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

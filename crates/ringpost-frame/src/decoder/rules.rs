//! Which frames may come next.

use crate::error::ProtocolError;
use crate::features::Features;
use crate::header::FrameHeader;
use crate::hello::Agreement;
use crate::kind::{FrameFlags, FrameKind};

/// What may come next, for all profiles.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) frame_bytes_max: u32,
    fds_max: u16,
    /// The flags a message may have.
    flags: FrameFlags,
    pub(super) phase: Phase,
    /// The last message frame had MORE: a plain one continues it, which only `step` may report.
    pub(super) in_fragments: bool,
}

impl Rules {
    pub(super) fn agreed(agreement: &Agreement) -> Self {
        Self {
            frame_bytes_max: agreement.frame_bytes_max,
            fds_max: agreement.fds_max,
            flags: agreed_flags(agreement.features),
            phase: Phase::Open,
            in_fragments: false,
        }
    }

    pub(super) const fn plain(frame_bytes_max: u32) -> Self {
        Self {
            frame_bytes_max,
            fds_max: 0,
            flags: FrameFlags::CRITICAL,
            phase: Phase::Open,
            in_fragments: false,
        }
    }

    pub(super) fn admit_len(&self, len: u64) -> Result<FrameHeader, ProtocolError> {
        match u32::try_from(len) {
            Ok(len) if len <= self.frame_bytes_max => Ok(FrameHeader::message(len)),
            _ => Err(ProtocolError::FrameTooLarge { len, limit: self.frame_bytes_max }),
        }
    }

    /// Checks a valid header against the agreement and against what came before.
    pub(super) fn admit(&mut self, header: FrameHeader) -> Result<FrameHeader, ProtocolError> {
        let FrameHeader { len, kind, flags, fds } = header;
        let allowed = if kind == FrameKind::Message { self.flags } else { FrameFlags::CRITICAL };
        if !allowed.contains(flags) {
            return Err(ProtocolError::FlagsNotAllowed { kind, bits: flags.0 & !allowed.0 });
        }
        if u16::from(fds) > self.fds_max {
            return Err(ProtocolError::DescriptorsNotAllowed { count: fds, limit: self.fds_max });
        }
        self.admit_len(u64::from(len))?;
        match (self.phase, kind) {
            (Phase::Rejected, _) => return Err(ProtocolError::AfterReject { kind }),
            (Phase::Finished, FrameKind::Message | FrameKind::Fin) => {
                return Err(ProtocolError::AfterFin { kind });
            }
            (_, FrameKind::Fin) => self.phase = Phase::Finished,
            (_, FrameKind::Reject) => self.phase = Phase::Rejected,
            (_, FrameKind::Message) => self.in_fragments = flags.contains(FrameFlags::MORE),
            _ => {}
        }
        Ok(header)
    }
}

/// How far the peer has got in ending the connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Open,
    Finished,
    Rejected,
}

/// The flags that messages may have with these features.
fn agreed_flags(features: Features) -> FrameFlags {
    [(Features::FRAGMENTS, FrameFlags::MORE), (Features::EXTENSIONS, FrameFlags::EXT)]
        .into_iter()
        .filter(|(feature, _)| features.contains(*feature))
        .fold(FrameFlags::CRITICAL, |flags, (_, flag)| flags | flag)
}

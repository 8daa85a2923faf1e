"""Recordings of brains: read from files, checked, selected, and lined up by condition."""

from mechint_core.recordings.channels import constant_channels as constant_channels, stray_gaps as stray_gaps
from mechint_core.recordings.description import describe_recording as describe_recording
from mechint_core.recordings.join import join_recordings as join_recordings
from mechint_core.recordings.load import load_recording as load_recording
from mechint_core.recordings.recording import Recording as Recording

"""What a MIDI file looks and sounds like: sheet music and audio. Of the core's rooms none knows this one."""

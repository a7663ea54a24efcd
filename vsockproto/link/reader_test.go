package link

import (
	"bytes"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

// A large frame costs its reader a large buffer only for a while.
func TestBufferIsSmallAgainAfterSmallFrames(t *testing.T) {
	const large = 100 << 10
	frame := func(n int) []byte {
		return append(vsockproto.AppendFrame(nil, vsockproto.FrameHeartbeat, 1, n), make([]byte, n)...)
	}
	stream := frame(large)
	for range smallRun + 1 {
		stream = append(stream, frame(64)...)
	}
	r := &frameReader{src: bytes.NewReader(stream)}
	read := func() {
		if _, err := r.next(vsockproto.MaxFrame); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if len(r.buf) < large {
		t.Fatalf("a buffer of %d bytes", len(r.buf))
	}
	for range smallRun {
		read()
	}
	r.src = bytes.NewReader(frame(64))
	r.start = r.end // what was read ahead is gone through
	read()
	if len(r.buf) != firstBuffer {
		t.Errorf("a buffer of %d bytes after %d small frames", len(r.buf), smallRun)
	}
}

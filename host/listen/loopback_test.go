package listen

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
)

// vsockLoopback returns how to connect to ourselves, or skips the test where
// the kernel has no vsock_loopback and the environment does not promise it.
func vsockLoopback(t *testing.T) func(t *testing.T, port uint32) net.Conn {
	missing := t.Skipf
	if strings.Contains(os.Getenv("OUTGUARD_REQUIRE"), "vsock-loopback") {
		missing = t.Fatalf
	}
	l, err := vsock.ListenContextID(anyCID, 6821, nil)
	if err != nil {
		missing("vsock-loopback: no AF_VSOCK here: %v", err)
	}
	defer l.Close()
	c, err := vsock.Dial(vsock.Local, 6821, nil)
	if err != nil {
		missing("vsock-loopback: AF_VSOCK has no loopback here (modprobe vsock_loopback): %v", err)
	}
	c.Close()
	return func(t *testing.T, port uint32) net.Conn {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for {
			c, err := vsock.Dial(vsock.Local, port, nil)
			if err == nil {
				return c
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

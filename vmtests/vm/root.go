package vm

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// rootWord on the kernel's command line lets Root into the guest.
const rootWord = "outguard.root"

func (g *Guest) rootSocket() string { return filepath.Join(g.dir, "root.sock") }

// Root runs one line of shell as the guest's root, through a serial port, and
// returns what it printed and its exit status. The guest's Spec has Root.
// Nothing that the monitor or the agent uses is on the way.
func (g *Guest) Root(ctx context.Context, line string, within time.Duration) (out string, status int, err error) {
	if strings.ContainsAny(line, "\r\n") {
		return "", 0, fmt.Errorf("root of %s: %q is more than one line", g.Name, line)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", g.rootSocket())
	if err != nil {
		return "", 0, fmt.Errorf("root of %s: %w", g.Name, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return "", 0, err
	}
	id := rand.Text()
	if _, err := fmt.Fprintf(conn, "%s %s\n", id, line); err != nil {
		return "", 0, fmt.Errorf("root of %s: %w", g.Name, err)
	}
	var all strings.Builder
	for s := bufio.NewScanner(conn); s.Scan(); {
		text := strings.TrimSuffix(s.Text(), "\r")
		if _, end, ok := strings.Cut(text, "root: "+id+" "); ok {
			status, err := strconv.Atoi(end)
			return all.String(), status, err
		}
		all.WriteString(text + "\n")
	}
	return all.String(), 0, fmt.Errorf("root of %s: %q did not end within %s; it printed %q", g.Name, line, within, all.String())
}

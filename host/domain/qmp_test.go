package domain

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/outguard/outguard/host/domain/domaintest"
)

// resumeByQEMU has QEMU let the guest run, past libvirt, and returns when libvirt
// has heard of it. QEMU refuses that while it dumps.
func resumeByQEMU(ctx context.Context, c *Client, g *domaintest.Guest) error {
	ctx, cancel := context.WithTimeout(ctx, awaited)
	defer cancel()
	for {
		_, err := qmp(g.QMP, "cont")
		if err == nil {
			break
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "There is a dump in process") {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	for {
		if paused, err := c.Paused(ctx, g.UUID); !paused || err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// qmp runs one command on the guest's second monitor. What QEMU refuses is an
// error, as is an answer that does not come within half a minute.
func qmp(socket, command string) (string, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil {
		return "", fmt.Errorf("QMP's greeting: %w", err)
	}
	var answer string
	for _, cmd := range []string{"qmp_capabilities", command} {
		if _, err := fmt.Fprintf(conn, `{"execute": %q}`, cmd); err != nil {
			return "", err
		}
		for answer = ""; !strings.HasPrefix(answer, `{"return"`); { // events come between
			if answer, err = r.ReadString('\n'); err != nil {
				return "", fmt.Errorf("QMP's answer to %s: %w", cmd, err)
			}
			if strings.HasPrefix(answer, `{"error"`) {
				return "", fmt.Errorf("QMP %s: %s", cmd, strings.TrimSpace(answer))
			}
		}
	}
	return answer, nil
}

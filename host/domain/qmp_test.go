package domain

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
)

// qmp runs one command on the guest's second monitor.
func qmp(t testing.TB, socket, command string) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	var answer string
	for _, cmd := range []string{"qmp_capabilities", command} {
		fmt.Fprintf(conn, `{"execute": %q}`, cmd)
		for answer = ""; !strings.HasPrefix(answer, `{"return"`); {
			if answer, err = r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
	}
	return answer
}

package alert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// client follows no redirect: an alert goes where the playbook says. It keeps no
// connection: alerts are rare.
var client = &http.Client{
	Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
	CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	},
}

// maxToken bounds a token's file.
const maxToken = 8 << 10

func post(ctx context.Context, t Target, body []byte) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.Webhook, bytes.NewReader(body))
	if err != nil {
		return "", permanent{err}
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "outguard")
	if t.Token != "" {
		token, err := readToken(t.Token)
		if err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(r)
	if err != nil {
		return "", fmt.Errorf("POST %s: %w", t.host(), cause(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	said := strings.TrimSpace(resp.Status + ": " + printable(answer))
	switch {
	case resp.StatusCode/100 == 2 && err == nil:
		return strings.TrimSuffix(said, ":"), nil
	case err != nil:
		return "", fmt.Errorf("POST %s: %s: %w", t.host(), resp.Status, err)
	}
	err = fmt.Errorf("POST %s: %s", t.host(), strings.TrimSuffix(said, ":"))
	if resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusRequestTimeout && resp.StatusCode != http.StatusTooManyRequests {
		err = permanent{err}
	}
	return "", err
}

// host names the target in errors: the rest of a webhook's URL is often a secret.
func (t *Target) host() string {
	u, err := url.Parse(t.Webhook)
	if err != nil {
		return "the webhook"
	}
	return u.Scheme + "://" + u.Host
}

// cause is what was wrong, without the URL, for the same reason.
func cause(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxToken))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return "", fmt.Errorf("%s holds no token in one line", path)
	}
	return token, nil
}

package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Database is DB_URL taken apart. Its form is libpq's:
//
//	postgres://user:password@host:port,host:port/name?setting=value&setting=value
//
// Several hosts are tried in their order. What the URL does not say has a default here or the server's own: no PG*
// variable, no password file and no certificate in a home directory stands in for it.
type Database struct {
	User, Password, Name string
	Hosts                []DatabaseHost
	Connection           map[string]string // settings of the connection, by name: those in connectionSettings
	Session              map[string]string // settings of each session, by name, such as search_path: every other one
}

// DatabaseHost is one server. A Name that begins with a slash is the folder of its Unix socket.
type DatabaseHost struct {
	Name string
	Port uint16
}

const (
	databaseForm = "DB_URL is no URL of the form postgres://user:password@host:port/database?sslmode=disable"
	defaultPort  = 5432
)

// connectionSettings are those that the connection is made by, each with the values that it may have (any, where none
// are named). They are the client's, the server never sees them.
var connectionSettings = map[string][]string{
	"application_name":     nil,
	"connect_timeout":      nil,
	"load_balance_hosts":   {"disable", "random"},
	"options":              nil,
	"sslcert":              nil,
	"sslkey":               nil,
	"sslmode":              {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
	"sslnegotiation":       {"postgres", "direct"},
	"sslrootcert":          nil,
	"target_session_attrs": {"any", "read-write", "read-only", "primary", "standby", "prefer-standby"},
}

// refusedSettings are those of libpq, or of the driver, that would be ignored or do harm, and what to do instead.
var refusedSettings = map[string]string{
	"binary_parameters": "Tidemark sets it itself",
	"channel_binding":   "the driver has no such setting: leave it out",
	"client_encoding":   "Tidemark speaks UTF-8: leave it out",
	"database":          "name it in the URL's path",
	"datestyle":         "Tidemark sets it itself",
	"dbname":            "name it in the URL's path",
	"gssencmode":        "the driver has no such setting: leave it out",
	"hostaddr":          "name addresses in place of hosts",
	"passfile":          "put the whole URL into a file and name that in DB_URL_FILE",
	"password":          "put it before the host, as user:password@host, or the whole URL into a file (DB_URL_FILE)",
	"replication":       "leave it out",
	"require_auth":      "the driver has no such setting: leave it out",
	"search_path":       "Tidemark's tables stand in schemas of fixed names, of which public is one: leave it out",
	"service":           "say everything in the URL",
	"sslcrl":            "the driver has no such setting: leave it out",
	"sslpassword":       "the driver has no such setting: use a key without a password",
	"timezone":          "Tidemark sets it itself",
	"user":              "put it before the host, as user:password@host",
}

var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// Database takes URL apart. The error names every mistake, and never repeats the URL, which holds a password.
func (p Postgres) Database() (Database, error) {
	rest, hosts, ok := cutHosts(p.URL)
	if !ok {
		return Database{}, errors.New(databaseForm)
	}
	u, err := url.Parse(rest)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return Database{}, errors.New(databaseForm)
	}
	d := Database{User: u.User.Username(), Name: strings.TrimPrefix(u.Path, "/"), Connection: map[string]string{}, Session: map[string]string{}}
	d.Password, _ = u.User.Password()
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Database{}, errors.New("DB_URL: what follows the question mark is not name=value, joined by &")
	}
	var errs []error
	if d.Name == "" || strings.Contains(d.Name, "/") {
		errs = append(errs, errors.New(databaseForm))
	}
	if d.User == "" {
		errs = append(errs, errors.New("DB_URL names no user: "+databaseForm[len("DB_URL is no URL of the form "):]))
	}
	ports := ""
	if hosts == "" { // as libpq has it for Unix sockets: postgres://user@/database?host=/var/run/postgresql
		hosts, ports = q.Get("host"), q.Get("port")
		q.Del("host")
		q.Del("port")
	}
	d.Hosts, err = databaseHosts(hosts, ports)
	errs = append(errs, err)
	for _, name := range slices.Sorted(maps.Keys(q)) {
		errs = append(errs, d.set(name, q[name]))
	}
	errs = append(errs, sslFiles(d.Connection)...)
	return d, errors.Join(errs...)
}

// set takes one setting of the URL.
func (d *Database) set(name string, values []string) error {
	value := values[0]
	allowed, ours := connectionSettings[name]
	instead, refused := refusedSettings[strings.ToLower(name)]
	switch {
	case refused:
		return fmt.Errorf("%s of DB_URL: %s", name, instead)
	case name == "host" || name == "port":
		return fmt.Errorf("%s of DB_URL: the URL names hosts already: join them by commas, as host:port,host:port", name)
	case len(values) > 1:
		return fmt.Errorf("%s of DB_URL is there more than once", name)
	case len(allowed) > 0 && !slices.Contains(allowed, value):
		return fmt.Errorf("%s=%s of DB_URL is not known: one of %s", name, value, strings.Join(allowed, ", "))
	case name == "connect_timeout":
		if n, err := strconv.Atoi(value); err != nil || n < 1 {
			return fmt.Errorf("connect_timeout=%s of DB_URL is no number of seconds", value)
		}
	case !ours && !settingName.MatchString(name):
		return fmt.Errorf("%q of DB_URL is no setting", name)
	}
	if ours {
		d.Connection[name] = value
		return nil
	}
	for _, known := range slices.Sorted(maps.Keys(connectionSettings)) {
		if distance(name, known) <= 2 {
			return fmt.Errorf("%s of DB_URL is no setting: %s is meant", name, known)
		}
	}
	d.Session[name] = value
	return nil
}

// databaseHosts reads hosts by commas, each with a port of its own (host:port), or all with one of ports.
func databaseHosts(hosts, ports string) ([]DatabaseHost, error) {
	if hosts == "" {
		return nil, errors.New(databaseForm)
	}
	common := uint16(defaultPort)
	if ports != "" {
		port, err := strconv.ParseUint(ports, 10, 16)
		if err != nil || port == 0 {
			return nil, fmt.Errorf("port=%s of DB_URL is no port", ports)
		}
		common = uint16(port)
	}
	var out []DatabaseHost
	for item := range strings.SplitSeq(hosts, ",") {
		host := DatabaseHost{strings.Trim(item, "[]"), common}
		if name, text, err := net.SplitHostPort(item); err == nil {
			port, err := strconv.ParseUint(text, 10, 16)
			if err != nil || port == 0 {
				return nil, fmt.Errorf("%q in DB_URL is not host:port", item)
			}
			host = DatabaseHost{name, uint16(port)}
		} else if strings.Contains(item, ":") && net.ParseIP(host.Name) == nil {
			return nil, fmt.Errorf("%q in DB_URL is not host:port", item)
		}
		if host.Name == "" || strings.ContainsAny(host.Name, " %@?#") {
			return nil, fmt.Errorf("%q in DB_URL is not host:port", item)
		}
		out = append(out, host)
	}
	return out, nil
}

// cutHosts takes the hosts out of a URL, since net/url knows no list of them. What is left has "hosts" in their place.
func cutHosts(raw string) (rest, hosts string, ok bool) {
	scheme, after, ok := strings.Cut(raw, "://")
	if !ok {
		return "", "", false
	}
	end := strings.IndexAny(after, "/?#")
	if end < 0 {
		end = len(after)
	}
	at := strings.LastIndex(after[:end], "@") + 1
	return scheme + "://" + after[:at] + "hosts" + after[end:], after[at:end], true
}

// MaskURL replaces the password in a URL; a text that is no URL is masked whole.
func MaskURL(s string) string {
	rest, hosts, ok := cutHosts(s)
	u, err := url.Parse(rest)
	if !ok || err != nil || hosts == "" && u.User == nil {
		return "***"
	}
	q := u.Query()
	for _, name := range []string{"password", "sslpassword"} {
		if q.Has(name) {
			q.Set(name, "***")
			u.RawQuery = q.Encode()
		}
	}
	u.Host = ""
	user := ""
	if u.User != nil {
		user = u.User.Username() + "@"
		if _, has := u.User.Password(); has {
			user = u.User.Username() + ":***@"
		}
		u.User = nil
	}
	return u.Scheme + "://" + user + hosts + strings.TrimPrefix(u.String(), u.Scheme+"://")
}

// Package config reads a service's configuration from its environment into one struct, finds every
// mistake in it at once, and prints it with its secrets masked.
//
// A service fills its struct with defaults and hands it to Load with the environment as a map; nothing
// here reads the process's own environment, so two services with different settings can run in one
// process. Fields are bound by tags:
//
//	ServerPort int    `env:"SERVER_PORT" desc:"port to listen on"`
//	URL        string `env:"DB_URL" desc:"…" secret:"url"`   // password masked; DB_URL_FILE is read too
//
// A struct, or one embedded in it, may have a Validate() error method, which returns several mistakes by errors.Join.
package config

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/caarlos0/env/v11"
)

// Setting is one variable of a service, for printing and for the generated page.
type Setting struct {
	Name        string // the variable
	Value       string // as it is set, masked where it is secret
	Description string // what it is for
	Secret      string // what of it is secret: "" (nothing), "true" (all of it) or "url" (its password)
}

type field struct {
	Setting
	goName string
	value  reflect.Value
}

// Load overrides dst, a pointer to a struct filled with defaults, by environ, and validates it. An
// empty variable counts as unset. The error names every mistake found, one a line. Older names and near misses of any
// service's settings are mistakes too.
func Load(dst any, environ map[string]string) error {
	return load(dst, environ, misnamed(environ))
}

// LoadOwn is Load for a client, which ignores every variable that it does not read: the environment is its caller's.
func LoadOwn(dst any, environ map[string]string) error {
	return load(dst, environ, nil)
}

func load(dst any, environ map[string]string, misnamed []error) error {
	fields := walk(reflect.ValueOf(dst).Elem())
	given := make(map[string]string, len(environ))
	var mistakes []error
	for _, f := range fields {
		value, file := environ[f.Name], ""
		if f.Secret != "" {
			file = environ[f.Name+"_FILE"]
		}
		switch {
		case value != "" && file != "":
			mistakes = append(mistakes, fmt.Errorf("%s and %s_FILE are both set: keep one", f.Name, f.Name))
		case file != "":
			content, err := os.ReadFile(file)
			if err != nil {
				mistakes = append(mistakes, fmt.Errorf("%s_FILE: %w", f.Name, err))
				continue
			}
			value = strings.TrimRight(string(content), "\r\n")
			if value == "" {
				mistakes = append(mistakes, fmt.Errorf("%s_FILE: %s is empty", f.Name, file))
			}
		}
		value, err := readableText(f, value)
		if err != nil {
			mistakes = append(mistakes, err)
			continue
		}
		if value != "" {
			given[f.Name] = value
		}
	}
	mistakes = append(mistakes, misnamed...)
	if err := env.ParseWithOptions(dst, env.Options{Environment: given}); err != nil {
		mistakes = append(mistakes, readable(err, fields, given)...)
	}
	mistakes = append(mistakes, validate(reflect.ValueOf(dst))...)
	return joined(mistakes)
}

// readableText returns what is parsed of a variable's value: without the blanks around it and around the entries of a list,
// and without a list's empty entries, unless all are. A secret is taken as it is.
func readableText(f field, value string) (string, error) {
	if f.Secret != "" {
		return value, nil
	}
	value = strings.TrimSpace(value)
	switch f.value.Kind() {
	case reflect.String:
		return value, nil
	case reflect.Slice:
		var entries []string
		for e := range strings.SplitSeq(value, ",") {
			if e = strings.TrimSpace(e); e != "" {
				entries = append(entries, e)
			}
		}
		if entries == nil {
			return value, nil // for whoever checks it to say what is missing
		}
		return strings.Join(entries, ","), nil
	}
	if strings.HasPrefix(value, "tcp://") {
		return "", fmt.Errorf("%s=%q is what Kubernetes sets for a service of that name: set enableServiceLinks: false in the pod, or set %s yourself", f.Name, value, f.Name)
	}
	return value, nil
}

// Settings lists the variables of src, a pointer to a configuration, in the order of its fields.
func Settings(src any) []Setting {
	fields := walk(reflect.ValueOf(src).Elem())
	out := make([]Setting, len(fields))
	for i, f := range fields {
		out[i] = f.Setting
		out[i].Value = masked(f)
	}
	return out
}

// Secrets lists the secret values of src, a pointer to a configuration: what must not stand in a log.
func Secrets(src any) []string {
	var secrets []string
	for _, f := range walk(reflect.ValueOf(src).Elem()) {
		text := fmt.Sprint(f.value.Interface())
		switch f.Secret {
		case "":
		case "url":
			rest, _, _ := cutHosts(text)
			if u, err := url.Parse(rest); err == nil {
				if password, ok := u.User.Password(); ok && password != "" {
					secrets = append(secrets, password)
				}
			}
		default:
			if text != "" {
				secrets = append(secrets, text)
			}
		}
	}
	return secrets
}

// Environ turns "NAME=value" lines, as os.Environ gives them, into the map that Load takes.
func Environ(lines []string) map[string]string {
	m := make(map[string]string, len(lines))
	for _, line := range lines {
		if name, value, ok := strings.Cut(line, "="); ok {
			m[name] = value
		}
	}
	return m
}

func masked(f field) string {
	text := fmt.Sprint(f.value.Interface())
	if list, ok := f.value.Interface().([]string); ok {
		text = strings.Join(list, ",")
	}
	switch {
	case text == "" || f.Secret == "":
		return text
	case f.Secret == "url":
		return MaskURL(text)
	default:
		return "***"
	}
}

func walk(v reflect.Value) []field {
	var fields []field
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		if name, ok := sf.Tag.Lookup("env"); ok {
			fields = append(fields, field{
				Setting: Setting{Name: name, Description: sf.Tag.Get("desc"), Secret: sf.Tag.Get("secret")},
				goName:  sf.Name, value: v.Field(i),
			})
		} else if sf.Type.Kind() == reflect.Struct && sf.IsExported() {
			fields = append(fields, walk(v.Field(i))...)
		}
	}
	return fields
}

// readable names the variable where the parser names the field, and leaves a secret's value out.
func readable(err error, fields []field, given map[string]string) []error {
	var aggregate env.AggregateError
	if !errors.As(err, &aggregate) {
		return []error{err}
	}
	out := make([]error, 0, len(aggregate.Errors))
	for _, e := range aggregate.Errors {
		var parse env.ParseError
		i := -1
		if errors.As(e, &parse) {
			i = slices.IndexFunc(fields, func(f field) bool { return f.goName == parse.Name })
		}
		if i < 0 {
			out = append(out, e)
			continue
		}
		f := fields[i]
		if f.Secret != "" {
			out = append(out, fmt.Errorf("%s is not a %s", f.Name, f.value.Type()))
			continue
		}
		out = append(out, fmt.Errorf("%s=%q is not a %s", f.Name, given[f.Name], kind(f.value.Type())))
	}
	return out
}

func kind(t reflect.Type) string {
	switch {
	case t.String() == "time.Duration":
		return "duration, such as 500ms, 5s or 1m"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case strings.HasPrefix(t.Kind().String(), "int"), strings.HasPrefix(t.Kind().String(), "uint"):
		return "whole number"
	default:
		return t.String()
	}
}

func validate(v reflect.Value) []error {
	var mistakes []error
	if v.Kind() != reflect.Pointer {
		v = v.Addr()
	}
	if c, ok := v.Interface().(interface{ Validate() error }); ok {
		if err := c.Validate(); err != nil {
			mistakes = append(mistakes, split(err)...)
		}
	}
	s := v.Elem()
	for i := range s.NumField() {
		if sf := s.Type().Field(i); sf.Type.Kind() == reflect.Struct && sf.IsExported() {
			mistakes = append(mistakes, validate(s.Field(i))...)
		}
	}
	return mistakes
}

func split(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// joined drops repeats: an embedded struct's only Validate is promoted and so is asked twice.
func joined(mistakes []error) error {
	var lines []string
	for _, m := range mistakes {
		if text := "  " + m.Error(); !slices.Contains(lines, text) {
			lines = append(lines, text)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	count := "1 configuration error"
	if len(lines) != 1 {
		count = fmt.Sprintf("%d configuration errors", len(lines))
	}
	return fmt.Errorf("%s\n%s", count, strings.Join(lines, "\n"))
}

package stack

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed kafka/pom.xml
var pom []byte

// Classpath returns the Java classpath of the Kafka broker and its tools. The first call of a machine lets Maven fetch
// the jars (54 MB) into the repository's .cache; afterwards no network is needed.
func Classpath(ctx context.Context) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	sum := fnv.New64a()
	_, _ = sum.Write(pom) // a hash never fails
	cache := filepath.Join(root, ".cache")
	jars := filepath.Join(cache, fmt.Sprintf("kafka-%016x", sum.Sum64()))
	if _, err := os.Stat(jars); err == nil {
		return filepath.Join(jars, "*"), nil
	}
	if err := fetch(ctx, cache, jars); err != nil {
		return "", fmt.Errorf("fetch Kafka's jars: %w", err)
	}
	return filepath.Join(jars, "*"), nil
}

// fetch fills a directory beside jars and moves it there whole, so that nobody ever sees a part of it.
func fetch(ctx context.Context, cache, jars string) (err error) {
	if err := os.MkdirAll(cache, 0o750); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(cache, "kafka-fetch-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	project, lib := filepath.Join(dir, "pom.xml"), filepath.Join(dir, "lib")
	if err := os.WriteFile(project, pom, 0o600); err != nil {
		return err
	}
	maven, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("%w: run `make setup`, which installs Maven or says how to", err)
	}
	output, err := exec.CommandContext(ctx, maven, "--batch-mode", "--no-transfer-progress", "--file", project,
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+lib).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mvn: %w\n%s", err, output)
	}
	err = os.Rename(lib, jars)
	if _, there := os.Stat(jars); there == nil { // another process was faster
		return nil
	}
	return err
}

// Root returns the folder of go.work, looking upwards from the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.work in this folder or above: run inside the Tidemark repository")
		}
		dir = parent
	}
}

// Tool runs one of Kafka's command-line tools, for instance
// org.apache.kafka.tools.consumer.group.ConsumerGroupCommand, and returns what it printed. These tools tend to exit
// with 0 when they fail: look at the output too.
func Tool(ctx context.Context, class string, args ...string) (string, error) {
	classpath, err := Classpath(ctx)
	if err != nil {
		return "", err
	}
	java, err := java()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, java, append([]string{
		"-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", classpath, class,
	}, args...)...)
	output, err := cmd.CombinedOutput()
	if err != nil {
		name := class[strings.LastIndexByte(class, '.')+1:]
		return string(output), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output), nil
}

func java() (string, error) {
	path, err := exec.LookPath("java")
	if err != nil {
		return "", fmt.Errorf("%w: run `make setup`, which installs a Java runtime or says how to", err)
	}
	return path, nil
}

// The guide's own stack, `ws` and `redis` on Node, as one writes it by hand: one PUBLISH a message, one
// subscription a room, and what arrives is forwarded to the room's members as it is. No log, no limits.
import { createClient } from "redis";
import { WebSocketServer } from "ws";

const redis = createClient({ url: `redis://127.0.0.1:${process.env.REDIS_PORT}` });
const subscriber = redis.duplicate();
await Promise.all([redis.connect(), subscriber.connect()]);

const rooms = new Map();
let users = 0;

async function join(socket, name) {
  let members = rooms.get(name);
  if (members === undefined) {
    members = new Set();
    rooms.set(name, members);
    await subscriber.subscribe(`room:${name}`, (message) => {
      for (const member of members) {
        if (member.readyState === member.OPEN) member.send(message);
      }
    });
  }
  members.add(socket);
  socket.rooms.add(name);
  socket.send(JSON.stringify({ type: "joined", room: name }));
}

function leaveAll(socket) {
  for (const name of socket.rooms) {
    const members = rooms.get(name);
    members.delete(socket);
    if (members.size === 0) {
      rooms.delete(name);
      subscriber.unsubscribe(`room:${name}`);
    }
  }
}

const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.env.PORT), path: "/ws", maxPayload: 102400 });
server.on("connection", (socket) => {
  socket.user = `guest-${++users}`;
  socket.rooms = new Set();
  socket.alive = true;
  socket.on("pong", () => { socket.alive = true; });
  socket.on("error", () => socket.terminate());
  socket.on("close", () => leaveAll(socket));
  socket.on("message", (data) => {
    let command;
    try {
      command = JSON.parse(data);
    } catch {
      return;
    }
    if (command.type === "publish" && socket.rooms.has(command.room)) {
      redis.publish(`room:${command.room}`, JSON.stringify({
        type: "message", room: command.room, event: command.event, from: socket.user,
        ts: Date.now() / 1000, data: command.data,
      }));
    } else if (command.type === "join") {
      join(socket, command.room);
    }
  });
  socket.send(JSON.stringify({ type: "welcome", user: socket.user }));
});
setInterval(() => {
  for (const socket of server.clients) {
    if (!socket.alive) {
      socket.terminate();
    } else {
      socket.alive = false;
      socket.ping();
    }
  }
}, 30000);
server.on("listening", () => console.log("listening"));

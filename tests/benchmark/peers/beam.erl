%% What the server of the Elixir guide's chapter "Task and gen_tcp" does, on the BEAM: a process for
%% each connection, lines by {packet, line}.
%%
%%     PORT=4040 erl -noinput -s beam
-module(beam).
-export([start/0]).

start() ->
    %% A socket is closed when the process ends that has opened it.
    spawn(fun listen/0).

listen() ->
    Port = list_to_integer(os:getenv("PORT")),
    Options = [binary, {packet, line}, {active, false}, {reuseaddr, true}, {backlog, 1024},
               {nodelay, true}, {buffer, 65536}, {ip, {127, 0, 0, 1}}],
    {ok, Listening} = gen_tcp:listen(Port, Options),
    accept(Listening).

accept(Listening) ->
    {ok, Client} = gen_tcp:accept(Listening),
    Pid = spawn(fun() -> receive go -> serve(Client) end end),
    ok = gen_tcp:controlling_process(Client, Pid),
    Pid ! go,
    accept(Listening).

serve(Client) ->
    case gen_tcp:recv(Client, 0) of
        {ok, Line} ->
            ok = gen_tcp:send(Client, Line),
            serve(Client);
        {error, closed} ->
            ok
    end.
